/// `tributary model quantize`: a model with its linear maps in 4 bits, as bitsandbytes stores them and transformers loads them.

import Adapters
import ArgumentParser
import Checkpoints
import LinearAlgebra
import Plan
import Primitives
import Programs
import Quantization
import Training

struct QuantizeCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "quantize", abstract: "Write a model with its linear maps in 4 bits, as transformers loads it.",
        discussion: """
            Embeddings, head and norms stay as they are stored; tokenizer and other files are copied. With --start, an adapter \
            is written too that makes up for a part of what quantization loses, and the weights are quantized for it.
            """)

    @Option(name: .long, help: ArgumentHelp("Folder of a Hugging Face model, or a GGUF file.", valueName: "model")) var model:
        String
    @Option(name: .long, help: ArgumentHelp("Folder for the quantized model.", valueName: "dir")) var output: String
    @Option(name: .long, help: ArgumentHelp("nf4 or fp4.", valueName: "form")) var quantize: String
    @Option(name: .long, help: "Weights that share a scale.") var block = NF4.defaultBlockSize
    @Flag(inversion: .prefixedNo, help: "Keep the scales in 8 bits (double quantization).") var nested = true
    @Flag(name: .long, help: "Measure the weights' error, which reads them a second time.") var report = false
    @Option(name: .long, help: "loftq or lq: quantize together with an adapter.") var start: String?
    @Option(name: .long, help: ArgumentHelp("Folder for the start's adapter, in PEFT's format.", valueName: "dir"))
    var startOutput: String?
    @Option(name: .long, help: "Rank of the start (default: 16).") var rank: Int?
    @Option(name: .long, help: "The start's scale is alpha / rank (default: twice the rank).") var alpha: Double?
    @Option(
        name: .long,
        help: ArgumentHelp(
            "Of the start: all-linear, or names such as q_proj,v_proj (default: all-linear).", valueName: "names"))
    var targetModules: String?
    @Option(name: .long, help: "The most steps of the start's alternation (default: 5).") var steps: Int?
    @Option(name: .long, help: "Equal seeds give equal starts (default: 0).") var seed: UInt64?
    @OptionGroup var result: OutputOptions

    func run() throws {
        try Interrupts.watch {}
        var settings = ModelQuantization()
        let formats: [any FourBitFormat.Type] = [NF4.self, FP4.self]
        guard let format = formats.first(where: { $0.name == quantize }) else {
            throw Failure(
                .usage,
                "--quantize is \(quantize): a model can be written in \(formats.map { $0.name }.joined(separator: " or "))")
        }
        settings.format = format
        try require(
            NF4.blockSizes.contains(block),
            "--block is \(block): possible are \(NF4.blockSizes.sorted().map(String.init).joined(separator: ", "))")
        settings.blockSize = block
        settings.nested = nested
        settings.measuresError = report
        let checkpoint = try CheckpointFolder(path: model)
        let maps = checkpoint.configuration.linearMaps
        settings.start = try startSettings(maps)
        if let startOutput {
            try require(
                !checkpoint.configuration.isEncoder,
                "--start is for models that predict tokens: a classifier's adapter has a head, which only training makes; leave --start out, and train on the quantized model"
            )
            let (place, startPlace) = (absolutePath(output) + "/", absolutePath(startOutput) + "/")
            try require(
                !place.hasPrefix(startPlace) && !startPlace.hasPrefix(place),
                "--start-output is --output or a folder around or within it: the adapter and the model need a folder each")
            try checkReplaceable(startOutput, replacing: PEFTAdapter.isOurs)
        }
        var bytes = 0
        for name in checkpoint.tensorNames { bytes += try checkpoint.tensor(name).range.count }
        var outcome: ModelQuantization.Outcome?
        let seconds = try writeModel(to: output) { progress throws(Failure) in
            outcome = try settings.write(checkpoint, to: output, startFolder: startOutput, progress: progress)
        }
        guard let outcome else { throw Failure(.internalError, "nothing was quantized") }
        let written = try CheckpointFolder(path: output)
        var after = 0
        for name in written.tensorNames { after += try written.tensor(name).range.count }
        let rate = Double(bytes) / 1e6 / max(seconds, 1e-9)
        let total = QuantizationStart.total(outcome.errors)
        var members: [(String, JSONValue)] = [
            ("output", .string(output)), ("format", .string(quantize)), ("block", .integer(block)), ("nested", .boolean(nested)),
            ("bytes_before", .integer(bytes)), ("bytes", .integer(after)), ("files", .integer(written.weightFiles.count)),
            ("seconds", real(seconds)), ("megabytes_per_second", real(rate)), ("peak_gib", real(peakGiB())),
        ]
        if !outcome.errors.isEmpty {
            members.append(("relative_error", real(total.plain)))
            if start != nil { members.append(("relative_error_with_start", real(total.started))) }
            members.append(("maps", ErrorTable.json(outcome.errors, hasStart: start != nil)))
        }
        result.write(members) {
            var text =
                "\(output): \(Readable.bytes(bytes)) -> \(Readable.bytes(after)) in \(Readable.duration(seconds: seconds)), \(Readable.decimal(rate, 0)) MB/s\n"
            if !outcome.errors.isEmpty { text += ErrorTable.text(outcome.errors, hasStart: start != nil) }
            if let startOutput { text += "the start's adapter is in \(startOutput)\n" }
            return text
        }
    }
}

extension QuantizeCommand {
    /// The start that the options ask for; nil without one.
    private func startSettings(_ maps: [LinearMap]) throws(Failure) -> ModelQuantization.Start? {
        guard let start else {
            let given: [(name: String, isGiven: Bool)] = [
                ("--start-output", startOutput != nil), ("--rank", rank != nil), ("--alpha", alpha != nil),
                ("--target-modules", targetModules != nil), ("--steps", steps != nil), ("--seed", seed != nil),
            ]
            for (name, isGiven) in given {
                try require(!isGiven, "\(name) means nothing without --start: leave it out")
            }
            return nil
        }
        let order = try choice("--start", start, QuantizationStart.Order.self)
        try require(startOutput != nil, "--start \(start) writes an adapter: name its folder with --start-output")
        let steps = steps ?? 5
        try require((1...1000).contains(steps), "--steps is \(steps): it is between 1 and 1000")
        let modules = (targetModules ?? "all-linear").split(separator: ",").map(String.init)
        let targets = try FederationPlan.targets(modules, among: maps)
        let rank = rank ?? 16
        let specification = try AdapterSpecification(
            method: .lora, maps: targets, rank: rank, alpha: alpha ?? 2 * Double(rank), rankStabilized: false)
        return .init(order: order, maps: targets, rank: rank, scale: specification.scale, steps: steps, seed: seed ?? 0)
    }
}

/// What quantization loses of each kind of linear map.
enum ErrorTable {
    static func json(_ errors: [QuantizationStart.MapError], hasStart: Bool) -> JSONValue {
        .array(
            errors.map { error in
                var members: [JSONValue.Member] = [
                    .init("map", .string(error.map)), .init("relative_error", real(error.relativePlain)),
                ]
                if hasStart { members.append(.init("relative_error_with_start", real(error.relativeStarted))) }
                return .object(members)
            })
    }

    /// One line for each module name, over all layers, and one for all.
    static func text(_ errors: [QuantizationStart.MapError], hasStart: Bool) -> String {
        func module(_ error: QuantizationStart.MapError) -> String {
            LinearMap(name: error.map, outputs: 1, inputs: 1).moduleName
        }
        var names: [String] = []
        for name in errors.map(module) where !names.contains(name) { names.append(name) }
        let width = max(8, names.map(\.count).max() ?? 0)
        func cell(_ text: String, _ width: Int) -> String { text + String(repeating: " ", count: max(0, width - text.count)) }
        func row(_ name: String, _ part: [QuantizationStart.MapError]) -> String {
            let (plain, started) = QuantizationStart.total(part)
            return cell(name, width + 2) + cell(Readable.decimal(plain, 5), 10) + (hasStart ? Readable.decimal(started, 5) : "")
        }
        let rows = names.map { name in row(name, errors.filter { module($0) == name }) } + [row("all", errors)]
        let header = cell("maps", width + 2) + cell("error", 10) + (hasStart ? "with start" : "")
        return "relative error of the weights (Frobenius norms)\n" + ([header] + rows).joined(separator: "\n") + "\n"
    }
}
