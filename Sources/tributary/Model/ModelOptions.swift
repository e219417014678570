/// Options that the model commands share, and what they stand for.

import Adapters
import ArgumentParser
import Checkpoints
import FoundationEssentials
import LinearAlgebra
import Model
import Primitives
import Programs
import Quantization
import Training

struct ModelOptions: ParsableArguments {
    @Option(name: .long, help: ArgumentHelp("Folder of a Hugging Face model.", valueName: "dir"))
    var model: String

    @Option(
        name: .long,
        help: ArgumentHelp("Form of the frozen weights: stored, none (float32), int8, nf4 or fp4.", valueName: "form"))
    var quantize = "stored"

    @Option(
        name: .long,
        help: ArgumentHelp(
            "Type of the matrix products: auto, float32 or bfloat16. auto is bfloat16 on a processor with AVX512-BF16, unless weights are held as float32.",
            valueName: "type"))
    var compute = "float32"

    /// The base, loaded, with progress on standard error.
    func load(task: ModelTask = .causal) throws -> (checkpoint: CheckpointFolder, model: LanguageModel) {
        let form = try choice("--quantize", quantize, WeightForm.self)
        let compute = try choice("--compute", compute, ComputeChoice.self)
        let checkpoint = try CheckpointFolder(path: model)
        var line = ProgressLine()
        let loaded = try LanguageModel(
            checkpoint: checkpoint, quantization: form, compute: compute, task: task
        ) { done, count in
            line.show(done: done, of: count, "loading the model: \(done) of \(count) linear maps")
        }
        line.finish()
        return (checkpoint, loaded)
    }
}

struct OutputOptions: ParsableArguments {
    @Flag(name: .long, help: "Print one JSON object on standard output.")
    var json = false

    func write(_ members: [(String, JSONValue)], text: () -> String) {
        Console.text(json ? JSONValue.object(members.map { .init($0.0, $0.1) }).compact + "\n" : text())
    }
}

/// The value that a text names, or a failure that lists the possible ones.
func choice<Value: RawRepresentable & CaseIterable>(
    _ option: String, _ text: String, _ type: Value.Type
) throws(Failure) -> Value where Value.RawValue == String {
    guard let value = Value(rawValue: text) else {
        throw Failure(.usage, "\(option) is \(text): possible are \(Value.allCases.map(\.rawValue).joined(separator: ", "))")
    }
    return value
}

func require(_ condition: Bool, _ message: @autoclosure () -> String) throws(Failure) {
    guard condition else { throw Failure(.usage, message()) }
}

func real(_ value: Double) -> JSONValue { value.isFinite ? .number("\(value)") : .null }

/// Where digests of bases are kept between runs.
func cacheFolder() -> String? {
    let environment = ProcessInfo.processInfo.environment
    if let folder = environment["XDG_CACHE_HOME"], folder.hasPrefix("/") { return folder + "/tributary" }
    return environment["HOME"].map { $0 + "/.cache/tributary" }
}

/// The weights of an adapter folder on a base, or those that add nothing.
func adapterWeights(_ folder: String?, _ model: LanguageModel) throws(Failure) -> AdapterWeights {
    guard let folder else { return AdapterWeights(trained: AdapterState(zeros: AdapterLayout([]))) }
    return try PEFTAdapter(folder: folder).weights(maps: model.linearMaps)
}
