/// `tributary model start-report`: what quantization loses, and what of it LoftQ's start gives back.

import Adapters
import ArgumentParser
import Checkpoints
import Datasets
import LinearAlgebra
import Model
import Plan
import Primitives
import Programs
import Quantization
import Training

struct StartReportCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "start-report",
        abstract: "Measure what quantization loses, and what of it the start loftq gives back.",
        discussion:
            "With --data, also as perplexity: of the unquantized model, the quantized one, and that with the start; not for encoders."
    )

    @OptionGroup var base: ModelOptions
    @Option(
        name: .long,
        help: ArgumentHelp("The model from which a quantized one was made (default: --model).", valueName: "dir"))
    var unquantizedModel: String?
    @Option(name: .long, help: "Rank of the start.") var rank = 16
    @Option(name: .long, help: ArgumentHelp("all-linear, or names such as q_proj,v_proj.", valueName: "names"))
    var targetModules = "all-linear"
    @Option(name: .long, help: ArgumentHelp("JSONL or CSV with text, prompt and completion, or messages.", valueName: "file"))
    var data: String?
    @Option(name: .long, help: ArgumentHelp("Only the first so many examples.", valueName: "n")) var limit: Int?
    @Option(name: .long, help: "Equal seeds give equal starts.") var seed: UInt64 = 0
    @OptionGroup var result: OutputOptions

    func run() throws {
        try Interrupts.watch {}
        try require((limit ?? 1) >= 1, "limit is \(limit ?? 0): it is at least 1")
        try require(limit == nil || data != nil, "--limit means nothing without --data: give both, or leave it out")
        let source = try CheckpointFolder(path: unquantizedModel ?? base.model)
        let checkpoint = try CheckpointFolder(path: base.model)
        try require(
            data == nil || !checkpoint.configuration.isEncoder,
            "--data measures perplexity, and \(base.model) is an encoder, which predicts no tokens: leave --data out")
        let form = try choice("--quantize", base.quantize, WeightForm.self)
        _ = try choice("--compute", base.compute, ComputeChoice.self)
        _ = try KernelPath.current()
        let maps = checkpoint.configuration.linearMaps
        let targets = try FederationPlan.targets(targetModules.split(separator: ",").map(String.init), among: maps)
        let specification = try AdapterSpecification(
            method: .lora, maps: targets, rank: rank, alpha: Double(rank), rankStabilized: false)
        var examples: [Example] = []
        if let data {
            let encoded = try ModelText(checkpoint: checkpoint).examples(
                try DataFile.read(data), sequenceLength: checkpoint.configuration.maximumPositions)
            examples = Array(encoded.examples.prefix(limit ?? .max))
        }
        func perplexity(_ model: AdaptedModel, _ what: String) throws(Failure) -> Double? {
            guard !examples.isEmpty else { return nil }
            var line = ProgressLine()
            defer { line.finish() }
            return try Evaluation.evaluate(model: model, examples: examples) { done, count in
                line.show(done: done, of: count, unit: "examples", "\(what): evaluated \(done) of \(count) examples")
                return !Interrupts.isInterrupted
            }.perplexity
        }
        let none = AdapterWeights(trained: AdapterState(zeros: AdapterLayout([])))
        var format = ""
        // Of the quantized model; the unquantized one computes alike, whatever auto would be for its weights.
        var compute = ComputeChoice.float32
        func quantized() throws -> (errors: [QuantizationStart.MapError], plain: Double?, started: Double?) {
            // The weights' error alone needs no model: each map is read, measured and forgotten.
            let language = data == nil ? nil : try base.load().model
            if let language {
                format = language.weightFormat
                compute = language.compute == .bfloat16 ? .bfloat16 : .float32
            }
            var line = ProgressLine()
            let made = try QuantizationStart.residual(
                specification: specification,
                base: { (map) throws(Failure) in
                    if let weight = language?.weight(of: map.name) { return weight }
                    let weight = try QuantizedMatrix.load(map: map, from: checkpoint, as: form)
                    if format.isEmpty { format = weight.formatName }
                    return weight
                }, weights: { (map) throws(Failure) in try QuantizationStart.weights(of: map, in: source) },
                generator: SeededGenerator(seed: seed, purpose: "start")
            ) { done, count in
                line.show(done: done, of: count, "computing the start: \(done) of \(count) linear maps")
                return !Interrupts.isInterrupted
            }
            line.finish()
            guard let language else { return (made.errors, nil, nil) }
            let model = try AdaptedModel(model: language, weights: none)
            let plain = try perplexity(model, "quantized")
            var draws = SeededGenerator(seed: seed, purpose: "lora-a")
            try model.load(specification.weights(ofStart: made.state, initial: specification.initialWeights(&draws)))
            return (made.errors, plain, try perplexity(model, "with the start"))
        }
        let measured = try quantized()
        // Only now: two models never stand in memory together.
        var original: Double?
        if !examples.isEmpty {
            let language = try LanguageModel(checkpoint: source, quantization: .stored, compute: compute)
            original = try perplexity(try AdaptedModel(model: language, weights: none), "unquantized")
        }
        let total = QuantizationStart.total(measured.errors)
        func optional(_ value: Double?) -> JSONValue { value.map(real) ?? .null }
        result.write([
            ("format", .string(format)), ("rank", .integer(rank)), ("relative_error", real(total.plain)),
            ("relative_error_with_start", real(total.started)), ("perplexity_unquantized", optional(original)),
            ("perplexity", optional(measured.plain)), ("perplexity_with_start", optional(measured.started)),
            ("examples", .integer(examples.count)), ("peak_gib", real(peakGiB())),
            ("maps", ErrorTable.json(measured.errors, hasStart: true)),
        ]) {
            var text = "\(base.model) as \(format), start of rank \(rank)\n" + ErrorTable.text(measured.errors, hasStart: true)
            if let original, let plain = measured.plain, let started = measured.started {
                text +=
                    "perplexity on \(examples.count) examples: \(Readable.decimal(original, 4)) unquantized, \(Readable.decimal(plain, 4)) quantized, \(Readable.decimal(started, 4)) with the start\n"
            }
            return text
        }
    }
}
