/// `tributary model train`: an adapter from a data file, on this machine alone.

import Adapters
import ArgumentParser
import Checkpoints
import Datasets
import LinearAlgebra
import Model
import Plan
import Primitives
import Programs
import Training

struct TrainCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "train", abstract: "Train an adapter on a data file, and write it in PEFT's format.")

    @OptionGroup var base: ModelOptions
    @Option(name: .long, help: ArgumentHelp("JSONL or CSV with text, prompt and completion, or messages.", valueName: "file"))
    var data: String
    @Option(name: .long, help: ArgumentHelp("Folder for the adapter.", valueName: "dir"))
    var output: String
    @Option(name: .long, help: "Optimizer steps.") var steps: Int
    @Option(name: .long, help: "Examples of a batch, or bins with --packing best-fit.") var batchSize = 8
    @Option(name: .long, help: "Batches of a step.") var gradientAccumulation = 1
    @Option(name: .long, help: "Longer examples are cut on the right.") var sequenceLength = 512
    @Option(name: .long, help: "off, or best-fit: bins of up to a sequence length of tokens; longer texts are divided.")
    var packing = "off"
    @Option(name: .long, help: "Peak of the schedule.") var learningRate = 2e-4
    @Option(name: .long, help: "constant, linear or cosine.") var schedule = "constant"
    @Option(name: .long, help: "Steps in which the rate rises.") var warmupSteps = 0
    @Option(name: .long, help: "adamw, adamw8bit (its state in 8 bits) or sgd.") var optimizer = "adamw"
    @Option(name: .long, help: "Decoupled weight decay.") var weightDecay = 0.0
    @Option(name: .long, help: "Largest norm of a step's gradient; 0 is no limit.") var gradientClip = 1.0
    @Option(name: .long, help: "lora, ffa-lora (A frozen) or lora-sb (only R trained).") var adapter = "lora"
    @Option(name: .long, help: "Rank of the adapter.") var rank = 16
    @Option(name: .long, help: "The scale is alpha / rank; twice the rank by default.") var alpha: Double?
    @Flag(name: .long, help: "The scale is alpha / sqrt(rank).") var rankStabilized = false
    @Option(name: .long, help: ArgumentHelp("all-linear, or names such as q_proj,v_proj.", valueName: "names"))
    var targetModules = "all-linear"
    @Option(name: .long, help: "Where the first factors come from: zero or loftq, with lora-sb gradient or xs.")
    var start = "default"
    @Option(
        name: .long,
        help: ArgumentHelp("The model from which a quantized one was made: for --start loftq.", valueName: "dir"))
    var unquantizedModel: String?
    @Option(name: .long, help: ArgumentHelp("Go on from this adapter.", valueName: "dir")) var initAdapter: String?
    @Option(name: .long, help: ArgumentHelp("A known chat template's name, in place of the model's own.", valueName: "name"))
    var chatTemplate: String?
    @Option(name: .long, help: "Equal seeds give equal adapters.") var seed: UInt64 = 0
    @OptionGroup var memory: MemoryOptions
    @OptionGroup var taskOptions: TaskOptions
    @OptionGroup var result: OutputOptions

    func run() throws {
        try Interrupts.watch {}
        var settings = TrainingSettings()
        settings.batchSize = batchSize
        settings.gradientAccumulation = gradientAccumulation
        let packs = try choice("--packing", packing, PackingName.self) == .bestFit
        settings.binLength = packs ? sequenceLength : nil
        settings.learningRate = learningRate
        settings.schedule = try choice("--schedule", schedule, ScheduleName.self)
        settings.warmupSteps = warmupSteps
        settings.optimizer = try choice("--optimizer", optimizer, OptimizerName.self)
        settings.weightDecay = weightDecay
        settings.gradientClip = gradientClip
        try settings.validate(steps: steps, sequenceLength: sequenceLength)
        let method = try choice("--adapter", adapter, AdapterMethod.self)
        let task = try choice("--task", taskOptions.task, TaskName.self)
        var startName = try choice("--start", start, StartName.self)
        if startName == .standard { startName = method == .loraSB ? .gradient : .zero }
        let starts: [StartName] = method == .loraSB ? StartName.ofLoRASB : [.zero, .loftq]
        try require(
            starts.contains(startName),
            "--start \(start) means nothing to \(adapter): possible are \(starts.map(\.rawValue).joined(separator: ", "))")
        try require(
            startName == .loftq || unquantizedModel == nil,
            "--unquantized-model means nothing without --start loftq: leave it out")
        try require(
            startName != .loftq || initAdapter == nil, "--start loftq and --init-adapter exclude one another: leave one out")
        try require(method != .loraSB || alpha == nil, "--alpha is not used by lora-sb, whose scale is 1: leave it out")
        try require(
            method != .loraSB || !rankStabilized, "--rank-stabilized is not used by lora-sb, whose scale is 1: leave it out")
        try require(
            task != .classify || chatTemplate == nil,
            "--chat-template means nothing to --task classify, which reads texts and no messages: leave it out")
        try require(
            method != .loraSB || initAdapter == nil,
            "--init-adapter is not used by lora-sb, whose frozen factors come from its own start: leave it out")
        try checkOutput()

        let checkpoint = try CheckpointFolder(path: base.model)
        let maps = checkpoint.configuration.linearMaps
        let targets = try FederationPlan.targets(targetModules.split(separator: ",").map(String.init), among: maps)
        let initial = try initAdapter.map { folder throws(Failure) in try PEFTAdapter(folder: folder) }
        let records = try DataFile.read(data, textField: taskOptions.textField)
        let plan = try taskOptions.plan(for: checkpoint.configuration, seed: seed) { () throws(Failure) in
            try initial?.checkLabels([])
            if let initial, !initial.labels.isEmpty { return initial.labels }
            return try LabelSet(classifying: records, field: taskOptions.labelField).names
        }
        if plan.task == .classify { try initial?.checkLabels(plan.labels) }
        let specification = try AdapterSpecification(
            method: method, maps: targets, rank: rank, alpha: alpha ?? 2 * Double(rank), rankStabilized: rankStabilized,
            head: plan.head)
        let source = try unquantizedModel.map { folder throws(Failure) in try CheckpointFolder(path: folder) } ?? checkpoint
        if startName == .loftq {
            var started = plan
            (started.start, started.quantize) = (startName, try choice("--quantize", base.quantize, QuantizationName.self))
            try started.validateStart(for: checkpoint)
            try QuantizationStart.check(source, holds: targets)
        }
        let memoryPlan = try memory.plan(
            quantize: base.quantize, compute: base.compute, of: checkpoint, specification: specification, settings: settings,
            sequenceLength: sequenceLength)
        let text = try ModelText(checkpoint: checkpoint, chatTemplate: chatTemplate)
        let encoded = try text.examples(
            records, task: taskOptions.learningTask(plan), sequenceLength: sequenceLength, dividesTexts: packs)
        let packed = settings.packing(encoded.examples)
        if let notes = dataNotes(encoded, sequenceLength: sequenceLength) { Console.error(notes) }

        if let packed,
            let note = packingNote(
                examples: encoded.examples.count, bins: packed.bins.count, tokens: packed.tokens, sequenceLength: sequenceLength)
        {
            Console.error(note)
        }

        // What cannot be written is found before what takes long.
        let place = try PEFTAdapter.place(output)
        let (_, language) = try base.load(task: plan.modelTask)
        var draws = SeededGenerator(seed: seed, purpose: "lora-a")
        var weights = specification.initialWeights(&draws)
        if let head = plan.derivedHead(specification) { weights.trained.replaceLast(with: head) }
        if let initial { weights = try initial.weights(specification, maps: maps, start: weights) }
        let model = try AdaptedModel(model: language, weights: weights)
        model.use(memoryPlan)
        if startName != .zero {
            let state = try makeStart(startName, model, specification, source, encoded.examples, settings)
            weights = specification.weights(ofStart: state, initial: weights)
            try model.load(weights)
        }
        let count = weights.trained.values.count
        Console.error(
            "training \(count) values on \(encoded.examples.count) example\(encoded.examples.count == 1 ? "" : "s") for \(steps) steps of \(batchSize * gradientAccumulation)\(packs ? " bins" : ""); \(memoryPlan.summary)"
        )
        var line = ProgressLine()
        let outcome = try LocalTrainer.train(
            model: model, examples: encoded.examples, settings: settings, stepRange: 0..<steps, totalSteps: steps,
            generator: SeededGenerator(seed: seed, purpose: "batches")
        ) { progress in
            line.show(
                done: progress.done, of: progress.count,
                "step \(progress.done) of \(progress.count), loss \(Readable.decimal(progress.loss, 4)), \(Readable.decimal(progress.tokensPerSecond, 0)) tokens/s"
            )
            return !Interrupts.isInterrupted
        }
        line.finish()
        let trained = PEFTAdapter(
            entries: exportedFactors(weights: outcome.weights), head: exportedHead(weights: outcome.weights),
            headPlace: .init(checkpoint.configuration), labels: plan.labels, baseModel: absolutePath(checkpoint.path))
        try trained.write(into: place, maps: maps)
        if outcome.steps < steps {
            throw Failure(
                .interrupted,
                "stopped after step \(outcome.steps) of \(steps); \(output) holds the adapter as it was then, and the same command with --init-adapter \(ShellWord.quoted(output)) goes on from it"
            )
        }
        let seconds = line.seconds
        result.write([
            ("adapter", .string(output)), ("loss", real(outcome.meanLoss)), ("last_loss", real(outcome.losses.last ?? 0)),
            ("steps", .integer(outcome.steps)), ("examples", .integer(encoded.examples.count)),
            ("target_tokens", .integer(outcome.targetTokens)), ("trained_parameters", .integer(count)),
            ("cut", .integer(encoded.cutCount)), ("divided", .integer(encoded.dividedCount)),
            ("dropped", .integer(encoded.droppedCount)), ("bins", packed.map { .integer($0.bins.count) } ?? .null),
            ("fill_rate", packed.map { real($0.fillRate) } ?? .null), ("seconds", real(seconds)),
            ("tokens_per_second", real(Double(outcome.tokens) / max(seconds, 1e-9))), ("peak_gib", real(peakGiB())),
        ]) {
            """
            \(output): \(steps) steps in \(Readable.duration(seconds: seconds)), loss \(Readable.decimal(outcome.losses.first ?? 0, 4)) -> \(Readable.decimal(outcome.losses.last ?? 0, 4)), \(Readable.decimal(Double(outcome.tokens) / max(seconds, 1e-9), 0)) tokens/s
            check it with: \(evaluation(of: plan))

            """
        }
    }

    /// Refuses to put an adapter in the place of another one, unless it goes on from that.
    private func checkOutput() throws(Failure) {
        try checkReplaceable(output, replacing: PEFTAdapter.isOurs)
        guard fileExists(output + "/adapter_model.safetensors") else { return }
        if let initAdapter, absolutePath(initAdapter) == absolutePath(output) { return }
        let goesOn = adapter == AdapterMethod.loraSB.rawValue ? "" : "go on from it with --init-adapter \(output), or "
        throw Failure(
            .cannotCreate, "\(output) holds an adapter already, which would be lost: \(goesOn)name another --output")
    }

    /// The command that measures the adapter as it was trained: on the same form of the base, in the same type.
    private func evaluation(of plan: FederationPlan) -> String {
        var words = ["tributary", "model", "eval", "--model", base.model, "--adapter", output, "--data", data]
        if base.quantize != "stored" { words += ["--quantize", base.quantize] }
        if base.compute != "float32" { words += ["--compute", base.compute] }
        if let chatTemplate { words += ["--chat-template", chatTemplate] }
        if plan.task == .classify { words += ["--task", "classify", "--label-field", taskOptions.labelField] }
        if let field = taskOptions.textField { words += ["--text-field", field] }
        return words.map(ShellWord.quoted).joined(separator: " ")
    }

    private func makeStart(
        _ name: StartName, _ model: AdaptedModel, _ specification: AdapterSpecification, _ source: CheckpointFolder,
        _ examples: [Example], _ settings: TrainingSettings
    ) throws(Failure) -> AdapterState {
        var line = ProgressLine()
        let report = { (done: Int, count: Int) -> Bool in
            line.show(done: done, of: count, "computing the start: \(done) of \(count) linear maps")
            return !Interrupts.isInterrupted
        }
        let draws = SeededGenerator(seed: seed, purpose: "start")
        let state: AdapterState
        let summary: String
        switch name {
        case .standard, .zero: throw Failure(.internalError, "start \(name.rawValue) needs no computation")
        case .loftq:
            let made = try QuantizationStart.residual(
                specification: specification,
                base: { (map) throws(Failure) in
                    guard let weight = model.model.weight(of: map.name) else {
                        throw Failure(.internalError, "the model has no \(map.name)")
                    }
                    return weight
                }, weights: { (map) throws(Failure) in try QuantizationStart.weights(of: map, in: source) },
                generator: draws, progress: report)
            (state, summary) = (made.state, QuantizationStart.summary(made.errors))
        case .gradient:
            let made = try LoRASBStart.fromGradient(
                model: model, specification: specification,
                examples: LoRASBStart.examples(examples, stepSize: batchSize * gradientAccumulation, generator: draws),
                batchSize: batchSize, learningRate: settings.learningRate, generator: draws, progress: report)
            (state, summary) = (made.state, LoRASBStart.summary(made.approximations))
        case .xs:
            let made = try LoRASBStart.fromBase(
                specification: specification, model: model.model, generator: draws, progress: report)
            (state, summary) = (made.state, LoRASBStart.summary(made.approximations))
        }
        line.finish()
        Console.error(summary)
        return state
    }
}
