/// `tributary simulate`: a federation on this machine, with the code of the deployed one.

import Adapters
import ArgumentParser
import Checkpoints
import ClientEngine
import CoordinatorCore
import Datasets
import FoundationEssentials
import Plan
import PlanOptions
import Primitives
import Programs

struct SimulateCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "simulate",
        abstract: "Run a whole federation in this process: one shared base, the deployed code, the same bits.",
        discussion: "Interrupted, the same command goes on where it stopped.")

    @Option(help: ArgumentHelp("The base model's folder, or a GGUF file.", valueName: "folder"))
    var model: String
    @Option(
        help: ArgumentHelp(
            "The model from which a quantized base was made, unquantized: for --start loftq.", valueName: "folder"))
    var unquantizedModel: String?
    @Option(help: ArgumentHelp("JSONL or CSV with text, prompt and completion, or messages.", valueName: "file"))
    var data: String
    @Option(help: ArgumentHelp("The field or column of the text, if it is not called text.", valueName: "field"))
    var textField: String?
    @Option(help: ArgumentHelp("classify: the field or column of the label (default: label).", valueName: "field"))
    var labelField: String?
    @Option(help: "Number of clients; may be left out with --partition by:FIELD.")
    var clients: Int?
    @Option(help: ArgumentHelp("iid, by:FIELD or dirichlet:ALPHA:FIELD.", valueName: "partition"))
    var partition = "iid"
    @Option(help: ArgumentHelp("Write each client's data and its join command here.", valueName: "folder"))
    var writePartitions: String?
    @Option(help: ArgumentHelp("Evaluate the global adapter on this after each round.", valueName: "file"))
    var evalData: String?
    @Option(help: ArgumentHelp("A known chat template's name, in place of the model's own.", valueName: "name"))
    var chatTemplate: String?
    @Option(help: ArgumentHelp("The run's folder.", valueName: "folder"))
    var output: String
    @Option(
        help: ArgumentHelp(
            "For tests: noise and sampling under --dp follow from this number, and protect nobody.", valueName: "number"))
    var unsafeDpSeed: UInt64?
    @Option(help: ByteSize.memoryLimitHelp)
    var memoryLimit: ByteSize?
    @Flag(help: "Print one JSON object a round, and one at the end, on standard output.")
    var json = false
    @OptionGroup(title: "The plan") var options: PlanOptions

    func run() throws {
        try Interrupts.watch {}
        for (flag, isGiven) in [("--quorum", options.quorum != nil), ("--deadline", options.deadline != nil)] where isGiven {
            throw Failure(
                .usage,
                "\(flag) means nothing in a simulation, whose clients never fail and whose clock stands still: leave it out, or run processes with `tributary coordinator start`"
            )
        }
        let partition = try Partition(parsing: partition)
        let base = try EngineBase(modelFolder: model, unquantizedFolder: unquantizedModel, chatTemplate: chatTemplate)
        base.memoryLimit = memoryLimit?.bytes
        let maps = base.checkpoint.configuration.linearMaps
        var plan = FederationPlan()
        options.apply(to: &plan)
        try options.refuseUnused(by: plan.strategy)
        if case .by = partition {
        } else if clients == nil {
            throw Failure(.usage, "--clients is missing: say how many there are (only by:FIELD can tell)")
        }
        let records = try DataFile.read(data, textField: textField)
        try PlanOptions.readLabels(&plan)
        guard labelField == nil || plan.task == .classify else {
            throw Failure(.usage, "--label-field means nothing without --task classify: leave it out")
        }
        guard plan.exactMatchTokens == 0 || evalData != nil else {
            throw Failure(.usage, "--exact-match means nothing without --eval-data: give both, or leave it out")
        }
        guard chatTemplate == nil || plan.task == .causal else {
            throw Failure(
                .usage, "--chat-template means nothing to --task classify, which reads texts and no messages: leave it out")
        }
        let field = labelField ?? "label"
        let adapter = try options.initAdapter.map { folder throws(Failure) in try PEFTAdapter(folder: folder) }
        if let adapter { try plan.settleLabels(with: adapter) }
        if plan.task == .classify, plan.labels.isEmpty {
            plan.labels = try LabelSet(classifying: records, field: field).names
        }
        plan.settleTask(for: base.checkpoint.configuration)
        let parts = try partition.split(records, clients: clients, seed: plan.seed)
        plan.minimumClients = parts.count
        try plan.validate(for: base.checkpoint)
        try plan.settlePrivacy()
        guard evalData == nil || plan.allowsEvaluation else {
            throw Failure(
                .usage,
                "--eval-data is given under --dp \(plan.privacy.rawValue): results on it would be told; declare that it is nobody's secret with --public-evaluation, or leave it out"
            )
        }
        guard unsafeDpSeed == nil || plan.privacy != .none else {
            throw Failure(.usage, "--unsafe-dp-seed means nothing without --dp: leave it out")
        }
        guard plan.needsUnquantizedModel || unquantizedModel == nil else {
            throw Failure(
                .usage,
                "--unquantized-model is for --start loftq on a base that is stored quantized, and means nothing here: leave it out"
            )
        }
        guard !plan.needsUnquantizedModel || unquantizedModel != nil else {
            throw Failure(
                .usage,
                "start loftq needs the weights from which \(model) was quantized: add --unquantized-model with that model's folder"
            )
        }
        if unsafeDpSeed != nil { Console.error("privacy guarantee: \(RunFolder.unsafeNotice)") }
        plan.baseDigest = try base.checkpoint.baseDigest(cache: cacheFolder())
        plan.tokenizerDigest = try base.checkpoint.tokenizerDigest()
        let initial = try adapter.map { adapter throws(Failure) in
            try RunStart.weights(of: adapter, plan: &plan, maps: maps)
        }
        let evaluation = try evalData.map { path throws(Failure) in try DataFile.read(path, textField: textField) }
        if let folder = writePartitions { try write(parts, to: folder, plan: plan) }
        var hasHeader = false
        let run = SimulationRun(
            base: base, parts: parts, evaluation: evaluation, output: RunFolder(path: output), plan: plan, initial: initial,
            labelField: field,
            data: SimulationData(
                digest: Self.digest(
                    parts, evaluation,
                    reading: [
                        ("text-field", textField), ("label-field", plan.task == .classify ? field : nil),
                        ("chat-template", chatTemplate),
                    ]),
                options: [
                    ("--data", Self.digest([records], nil).description), ("--partition", partition.description),
                    ("--clients", "\(parts.count)"), ("--seed", "\(plan.seed)"),
                    ("--eval-data", evaluation.map { Self.digest([$0], nil).description } ?? ""),
                    ("--text-field", textField ?? ""), ("--label-field", plan.task == .classify ? field : ""),
                    ("--chat-template", chatTemplate ?? ""),
                ]), isQuiet: json, unsafeSeed: unsafeDpSeed
        ) { record, stored in
            if json { return Console.json(RunFolder.line(record, stored)) }
            if !hasHeader { Console.line(RoundTable.header(plan)) }
            hasHeader = true
            Console.line(RoundTable.row(record, stored))
        }
        let stored = try run.run()
        let last = EvaluationSummary(stored.evaluations.filter { $0.round == stored.records.count })
        if json {
            Console.json(
                .object([
                    .init("adapter", .string("\(output)/adapter")), .init("rounds", .integer(stored.records.count)),
                    .init("eval_loss", .optional(last.loss)), .init("eval_exact_match", .optional(last.exactMatch)),
                    .init("eval_accuracy", .optional(last.accuracy)), .init("eval_macro_f1", .optional(last.macroF1)),
                ]))
        } else {
            Console.line("the adapter is in \(output)/adapter, the metrics in \(output)/metrics.jsonl")
        }
    }

    /// What the data, its division and the way to read it are.
    ///
    /// - Parameter reading: options by which the same records become other examples
    static func digest(
        _ parts: [[Record]], _ evaluation: [Record]?, reading: [(option: String, value: String?)] = []
    ) -> Digest {
        var builder = DigestBuilder()
        for part in parts + [evaluation ?? []] {
            builder.update(counted: "\(part.count)")
            for record in part { builder.update(counted: record.json) }
        }
        for case (let option, let value?) in reading {
            builder.update(counted: option)
            builder.update(counted: value)
        }
        return builder.finish()
    }

    /// Each client's records, and in `commands.txt` how to run the same federation with processes.
    private func write(_ parts: [[Record]], to folder: String, plan: FederationPlan) throws(Failure) {
        let written = try Partition.write(parts, to: folder)
        let modelPath = absolutePath(model)
        var flags: [String] = []
        let mine = CommandLine.arguments.dropFirst(2)
        var iterator = mine.makeIterator()
        // The plan's own flags go to the coordinator as they were typed.
        let planFlags = Set(PlanOptions.keys.map(\.flag))
        let switches = PlanOptions.keys.filter { $0.expectation == Bool.expectation }.map(\.flag)
        let bare = Set(switches + switches.map { "--no-" + $0.dropFirst(2) })
        while let argument = iterator.next() {
            let name = String(argument.split(separator: "=", maxSplits: 1)[0])
            guard planFlags.contains(name) || planFlags.contains("--" + name.dropFirst(5)) else { continue }
            flags.append(ShellWord.quoted(argument))
            if name == argument, !bare.contains(name), let value = iterator.next() {
                flags.append(ShellWord.quoted(value))
            }
        }
        // Labels that the data gave are the plan's, and processes have to be told.
        if options.labels == nil, plan.task == .classify {
            try FileWriting.replace(folder + "/labels.txt", with: plan.labels.map { $0 + "\n" }.joined())
            flags += ["--labels", ShellWord.quoted(folder + "/labels.txt")]
        }
        let seed = unsafeDpSeed.map { " --unsafe-dp-seed \($0)" } ?? ""
        if plan.privacy == .client, !seed.isEmpty { flags.append(String(seed.dropFirst())) }
        var lines = [
            "tributary coordinator start --model \(ShellWord.quoted(modelPath)) --listen tcp://127.0.0.1:7400 --state \(ShellWord.quoted(folder))/run.sqlite --output \(ShellWord.quoted(folder))/output --min-clients \(parts.count) "
                + flags.joined(separator: " ")
        ]
        for (index, (name, path)) in written.enumerated() {
            var line =
                "tributary client join tcp://127.0.0.1:7400 --name \(name) --model \(ShellWord.quoted(modelPath)) --data \(ShellWord.quoted(path))"
            if let textField { line += " --text-field \(ShellWord.quoted(textField))" }
            if plan.task == .classify { line += " --label-field \(ShellWord.quoted(labelField ?? "label"))" }
            if let chatTemplate { line += " --chat-template \(ShellWord.quoted(chatTemplate))" }
            if plan.strategy == .flora { line += " --max-rank \(plan.ranks[index % plan.ranks.count])" }
            if plan.privacy == .example { line += seed }
            if index == 0, plan.needsUnquantizedModel, let unquantizedModel {
                line += " --unquantized-model \(ShellWord.quoted(absolutePath(unquantizedModel)))"
            }
            if index == 0, let evalData { line += " --eval-data \(ShellWord.quoted(absolutePath(evalData)))" }
            lines.append(line)
        }
        try FileWriting.replace(folder + "/commands.txt", with: lines.joined(separator: "\n") + "\n")
        if !json {
            Console.error(
                "\(written.count) partitions are in \(folder); \(folder)/commands.txt runs the same federation with processes")
        }
    }
}
