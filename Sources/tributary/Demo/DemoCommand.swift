/// `tributary demo`: a federation of eight clients on the embedded model, from the first step to a PEFT adapter.

import Adapters
import ArgumentParser
import Checkpoints
import ClientEngine
import CoordinatorCore
import Datasets
import DemoModel
import FoundationEssentials
import Plan
import Primitives
import Programs
import Tokenizers
import Training

struct DemoCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "demo",
        abstract: "Fine-tune the embedded model in a simulated federation of eight clients; about a minute on two cores.")

    @Option(help: ArgumentHelp("The folder for the model, the data and the run.", valueName: "folder"))
    var output = "demo-run"
    @Option(help: "Everything random follows from it.")
    var seed: UInt64 = 0

    /// Problems of each kind: to train on, and to judge by.
    static let trainingCount = 160
    static let evaluationCount = 8

    static func plan(seed: UInt64) -> FederationPlan {
        var plan = FederationPlan()
        plan.strategy = .ffaLoRA
        plan.rounds = 14
        plan.ranks = [16]
        plan.localSteps = 10
        plan.batchSize = 4
        plan.sequenceLength = 128
        plan.learningRate = 1.2e-2
        plan.schedule = .linear
        plan.exactMatchTokens = 12
        plan.seed = seed
        return plan
    }

    func run() throws {
        try Interrupts.watch {}
        let clock = ContinuousClock()
        let began = clock.now
        // As it was called, so that what is printed can be typed.
        let me = CommandLine.arguments[0]
        let modelFolder = output + "/base"
        try Folder.create(modelFolder, for: "--output")
        var index = 0
        while true {
            let file = tributary_demo_model_file(index)
            guard let name = file.name, let bytes = file.bytes else { break }
            let path = modelFolder + "/" + String(cString: name)
            let content = Array(UnsafeBufferPointer(start: bytes, count: file.count))
            if FileManager.default.contents(atPath: path).map({ Array($0) }) != content {
                try FileWriting.replace(path, with: content)
            }
            index += 1
        }
        let sets = try DemoData.make(trainingCount: Self.trainingCount, evaluationCount: Self.evaluationCount, seed: seed)
        try DataFile.write(sets.training, to: output + "/train.jsonl")
        try DataFile.write(sets.evaluation, to: output + "/eval.jsonl")

        let base = try EngineBase(modelFolder: modelFolder)
        let parts = try Partition.by(field: "kind").split(sets.training, clients: nil, seed: seed)
        var plan = Self.plan(seed: seed)
        plan.minimumClients = parts.count
        plan.baseDigest = try base.checkpoint.baseDigest(cache: nil)
        plan.tokenizerDigest = try base.checkpoint.tokenizerDigest()
        try plan.validate(for: base.checkpoint)

        let parameters = base.checkpoint.parameterCount
        Console.line(
            """
            A federation of \(parts.count) clients, each with another kind of word problem, \(Self.trainingCount) of them.
            Base: a Llama of \(Readable.decimal(Double(parameters) / 1e6, 1))M parameters in NF4, frozen and shared. Strategy \(plan.strategy.rawValue), rank \(plan.ranks[0]), \(plan.rounds) rounds of \(plan.localSteps) steps.

            \(RoundTable.header(FederationPlan()))
            """)
        let run = SimulationRun(
            base: base, parts: parts, evaluation: sets.evaluation, output: RunFolder(path: output + "/run"), plan: plan,
            initial: nil,
            data: SimulationData(
                digest: SimulateCommand.digest(parts, sets.evaluation), options: [("--seed", "\(seed)")]), isQuiet: false
        ) { record, stored in
            if record.round == 1 { Console.line(Self.startRow(stored)) }
            Console.line(RoundTable.row(record, stored))
        }
        let stored = try run.run()
        try summarize(stored, plan: plan, base: base, clients: parts.count)
        try answer(sets.evaluation, plan: plan, base: base)
        Console.line(
            """

            Done in \(Readable.decimal((clock.now - began) / .seconds(1), 0)) s. The adapter is in \(output)/run/adapter, in PEFT's format.

            Next:
              \(me) model eval --model \(output)/base --adapter \(output)/run/adapter --data \(output)/eval.jsonl --exact-match \(plan.exactMatchTokens)
              \(me) model generate --model \(output)/base --adapter \(output)/run/adapter --prompt \(Self.quoted(sets.evaluation[0]))
              \(me) simulate --model \(output)/base --data \(output)/train.jsonl --partition by:kind --eval-data \(output)/eval.jsonl --strategy fedit --ranks 8 --learning-rate 3e-3 --sequence-length 128 --output \(output)/fedit
              make build, then \(me) coordinator start --help and \(me) client join --help: the same on several machines
            """)
    }

    /// The evaluation of the untouched base: what every later row is to be compared with.
    private static func startRow(_ stored: StoredFederation) -> String {
        let start = EvaluationSummary(stored.evaluations.filter { $0.round == 0 })
        let record = RoundRecord(round: 0, attempts: 1, participants: [], trainLoss: nil, traffic: Traffic(), seconds: 0)
        guard start.loss != nil else { return "" }
        return RoundTable.row(record, stored)
    }

    private func summarize(_ stored: StoredFederation, plan: FederationPlan, base: EngineBase, clients: Int) throws {
        let before = EvaluationSummary(stored.evaluations.filter { $0.round == 0 })
        let after = EvaluationSummary(stored.evaluations.filter { $0.round == plan.rounds })
        let up = stored.records.reduce(0) { $0 + $1.traffic.uplink }
        let down = stored.records.reduce(0) { $0 + $1.traffic.downlink }
        // What the same exchanges would cost with the whole model in bfloat16, and with A and B of every map in float32.
        let exchanges = clients * plan.rounds
        let full = 2 * base.checkpoint.parameterCount * exchanges
        let lora = try AdapterSpecification(
            method: .lora, maps: base.checkpoint.configuration.linearMaps, rank: plan.ranks[0], alpha: 1, rankStabilized: false)
        let dense = lora.trainedLayout.parameterCount * 4 * exchanges
        func percent(_ value: Double?) -> String { value.map { Readable.decimal($0 * 100, 1) + " %" } ?? "-" }
        func ratio(_ bytes: Int, _ other: Int) -> String { Readable.decimal(Double(other) / Double(max(1, bytes)), 1) }
        Console.line(
            """

            Loss          \(Readable.decimal(before.loss ?? 0, 3)) -> \(Readable.decimal(after.loss ?? 0, 3)) nats a token
            Exact match   \(percent(before.exactMatch)) -> \(percent(after.exactMatch)) of \(Self.evaluationCount * clients) problems that no client has seen
            Sent up       \(Readable.bytes(up)); the full model would be \(Readable.bytes(full)) (\(ratio(up, full)) times as much), dense LoRA \(Readable.bytes(dense)) (\(ratio(up, dense)))
            Sent down     \(Readable.bytes(down)); the full model would be \(Readable.bytes(full)) (\(ratio(down, full)) times as much), dense LoRA \(Readable.bytes(dense)) (\(ratio(down, dense)))
            """)
    }

    private func answer(_ evaluation: [Record], plan: FederationPlan, base: EngineBase) throws {
        let tuned = try PEFTAdapter(folder: output + "/run/adapter").weights(maps: base.checkpoint.configuration.linearMaps)
        for record in [evaluation[2], evaluation[5]] {
            guard let question = try record.value("prompt"), let wanted = try record.value("completion") else { continue }
            func write(_ weights: AdapterWeights) throws -> String {
                let prompt = try base.text.prompt(question, asMessage: false)
                let written = try Generation.generate(
                    model: try base.model(weights, for: plan), prompt: prompt, maximumTokens: 16,
                    endTokens: base.text.endTokens, generator: SeededGenerator(seed: seed, purpose: "generation"))
                let text = base.text.tokenizer.decode(written.tokens, skipSpecialTokens: true)
                return text.split(separator: "\n").first.map(String.init) ?? ""
            }
            Console.line(
                """

                \(question.split(separator: "\n").first.map(String.init) ?? question)
                  base   \(try write(EngineBase.noAdapter))
                  tuned  \(try write(tuned))   (right:\(wanted))
                """)
        }
    }

    private static func quoted(_ record: Record) -> String {
        guard case .some(let text) = try? record.value("prompt") else { return "\"Question:\"" }
        return "$'" + text.split(separator: "\n", omittingEmptySubsequences: false).joined(separator: "\\n") + "'"
    }
}
