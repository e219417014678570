/// `tributary model inspect DIR`.

import Adapters
import ArgumentParser
import Checkpoints
import Model
import Plan
import Primitives
import Programs
import Quantization
import Tokenizers
import Training

struct InspectCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "inspect", abstract: "Check a model folder, and say what is in it.")

    @Argument(help: ArgumentHelp("Folder of a Hugging Face model, or a GGUF file.", valueName: "model"))
    var folder: String
    @Flag(name: .long, help: "Print what training would take, part by part, in place of what is in the folder.")
    var plan = false
    @Option(name: .long, help: ArgumentHelp("With --plan: form of the frozen weights (default: stored).", valueName: "form"))
    var quantize: String?
    @Option(name: .long, help: ArgumentHelp("With --plan: type of the matrix products (default: auto).", valueName: "type"))
    var compute: String?
    @Option(name: .long, help: "With --plan: lora, ffa-lora or lora-sb (default: lora).") var adapter: String?
    @Option(name: .long, help: "With --plan: rank of the adapter on all linear maps (default: 16).") var rank: Int?
    @Option(name: .long, help: "With --plan: examples of a batch (default: 8).") var batchSize: Int?
    @Option(name: .long, help: "With --plan: tokens of an example (default: 512).") var sequenceLength: Int?
    @Option(name: .long, help: "With --plan: adamw, adamw8bit or sgd (default: adamw).") var optimizer: String?
    @OptionGroup(title: "With --plan") var memory: MemoryOptions
    @OptionGroup var output: OutputOptions

    private func writePlan(_ checkpoint: CheckpointFolder) throws {
        var settings = TrainingSettings()
        settings.batchSize = batchSize ?? 8
        settings.optimizer = try choice("--optimizer", optimizer ?? "adamw", OptimizerName.self)
        // Models with fewer positions than the default are planned for as many as they have.
        let sequenceLength = sequenceLength ?? min(512, checkpoint.configuration.maximumPositions)
        let rank = rank ?? 16
        try settings.validate(steps: 1, sequenceLength: sequenceLength)
        let specification = try AdapterSpecification(
            method: try choice("--adapter", adapter ?? "lora", AdapterMethod.self), maps: checkpoint.configuration.linearMaps,
            rank: rank,
            alpha: 2 * Double(rank), rankStabilized: false)
        let plan = try memory.plan(
            quantize: quantize ?? "stored", compute: compute ?? "auto", of: checkpoint, specification: specification,
            settings: settings,
            sequenceLength: sequenceLength)
        let parts = plan.parts.map { part -> JSONValue in
            .object([
                .init("name", .string(part.name)), .init("bytes", .integer(part.bytes)), .init("mapped", .boolean(part.isMapped)),
            ])
        }
        output.write([("parts", .array(parts)), ("peak_bytes", .integer(plan.peak))] + plan.json) { plan.table }
    }

    func run() throws {
        let checkpoint = try CheckpointFolder(path: folder)
        if plan { return try writePlan(checkpoint) }
        for (name, isGiven) in [
            ("--quantize", quantize != nil), ("--compute", compute != nil), ("--adapter", adapter != nil),
            ("--rank", rank != nil),
            ("--batch-size", batchSize != nil), ("--sequence-length", sequenceLength != nil), ("--optimizer", optimizer != nil),
            ("--memory-limit", memory.memoryLimit != nil), ("--saved-activations", memory.savedActivations != "auto"),
        ] {
            try require(!isGiven, "\(name) means nothing without --plan: add it, or leave \(name) out")
        }
        let configuration = checkpoint.configuration
        let digest = try checkpoint.baseDigest(cache: cacheFolder())
        var bytes = 0
        var types: [String: Int] = [:]
        for name in checkpoint.tensorNames {
            let tensor = try checkpoint.tensor(name)
            bytes += tensor.range.count
            types[tensor.dtype.rawValue, default: 0] += 1
        }
        var denseBytes = 0
        for (name, _) in configuration.denseTensors { denseBytes += try checkpoint.tensor(name).range.count }
        let mapParameters = configuration.linearMaps.reduce(0) { $0 + $1.outputs * $1.inputs }
        var tokenizerText = "none"
        var tokenizer: JSONValue = .null
        if try checkpoint.companion("tokenizer.json") != nil {
            let text = try ModelText(checkpoint: checkpoint)
            let tokenizerDigest = try checkpoint.tokenizerDigest()
            tokenizerText =
                "\(text.tokenizer.vocabularySize) tokens, \(text.endToken.map { "end token \($0), " } ?? "")digest \(tokenizerDigest.short)"
            tokenizer = .object([
                .init("vocabulary", .integer(text.tokenizer.vocabularySize)),
                .init("end_token", text.endToken.map { .integer(Int($0)) } ?? .null),
                .init("digest", .string(tokenizerDigest.description)),
            ])
        }
        var modules: [(name: String, outputs: Int, inputs: Int)] = []
        for map in configuration.linearMaps where !modules.contains(where: { $0.name == map.moduleName }) {
            modules.append((map.moduleName, map.outputs, map.inputs))
        }
        let stored = types.sorted { $0.key < $1.key }.map { "\($0.value) \($0.key)" }.joined(separator: ", ")
        let form = configuration.quantization.map { "bitsandbytes \($0.type)" } ?? (checkpoint.isGGUF ? "GGUF" : "dense")
        output.write([
            ("model", .string(absolutePath(checkpoint.path))), ("architecture", .string(configuration.architecture.rawValue)),
            ("parameters", .integer(checkpoint.parameterCount)), ("layers", .integer(configuration.layerCount)),
            ("hidden_size", .integer(configuration.hiddenSize)), ("intermediate_size", .integer(configuration.intermediateSize)),
            ("heads", .integer(configuration.headCount)), ("key_value_heads", .integer(configuration.keyValueHeadCount)),
            ("head_size", .integer(configuration.headSize)), ("vocabulary", .integer(configuration.vocabularySize)),
            ("positions", .integer(configuration.maximumPositions)), ("tied_head", .boolean(configuration.tieWordEmbeddings)),
            ("form", .string(form)), ("bytes", .integer(bytes)), ("files", .integer(checkpoint.weightFiles.count)),
            ("base_digest", .string(digest.description)), ("tokenizer", tokenizer),
            (
                "target_modules",
                .object(modules.map { .init($0.name, .array([.integer($0.outputs), .integer($0.inputs)])) })
            ),
        ]) {
            let forms: [(String, Double)] =
                [("none", 32)] + WeightFormat.all.filter(\.isEncodable).map { ($0.name, $0.bitsPerWeight) }
            let held = forms.map { "\(Readable.bytes(Int($1 / 8 * Double(mapParameters)))) with --quantize \($0)" }
            return """
                model         \(absolutePath(checkpoint.path))
                architecture  \(configuration.architecture.rawValue), \(configuration.layerCount) layers, hidden \(configuration.hiddenSize), intermediate \(configuration.intermediateSize)
                attention     \(configuration.headCount) heads over \(configuration.keyValueHeadCount) key-value heads of \(configuration.headSize), \(configuration.maximumPositions) positions
                parameters    \(checkpoint.parameterCount), of which \(mapParameters) in the blocks' linear maps; head \(configuration.tieWordEmbeddings ? "tied" : "untied")
                stored        \(form), \(stored) tensors, \(Readable.bytes(bytes)) in \(checkpoint.weightFiles.count) file\(checkpoint.weightFiles.count == 1 ? "" : "s")
                linear maps   \(modules.map { "\($0.name) \($0.outputs)x\($0.inputs)" }.joined(separator: ", "))
                tokenizer     \(tokenizerText)
                base digest   \(digest)
                weights held  \(held.joined(separator: ", ")); embeddings, head, norms and biases \(Readable.bytes(denseBytes)) or less

                """
        }
    }
}
