/// One simulated federation from records to `adapter/`, `metrics.jsonl` and `run.json`: what `simulate` and `demo` run.

import Adapters
import Checkpoints
import ClientCore
import ClientEngine
import CoordinatorCore
import CoordinatorStore
import Datasets
import FoundationEssentials
import LinearAlgebra
import Plan
import Primitives
import Programs
import Simulation
import Training

struct SimulationRun {
    let base: EngineBase
    /// Records of each client, in the order of names.
    let parts: [[Record]]
    /// Held by the first client, which evaluates the global adapter after every round.
    let evaluation: [Record]?
    let output: RunFolder
    let plan: FederationPlan
    let initial: AdapterWeights?
    /// That holds the label of a record.
    var labelField = "label"
    /// What the data and its division are, so that a state is not continued on others.
    let data: SimulationData
    let isQuiet: Bool
    /// Only for tests: noise that follows from a number.
    var unsafeSeed: UInt64?
    /// Told of each round once its evaluation is known.
    let report: (RoundRecord, StoredFederation) -> Void

    var names: [String] { parts.indices.map { Partition.clientName($0, of: parts.count) } }

    /// `--max-rank` of each simulated client: only flora gives clients different ranks.
    func maximumRank(_ index: Int) -> Int? { plan.strategy == .flora ? plan.ranks[index % plan.ranks.count] : nil }

    /// Runs, or goes on with what the output folder holds.
    ///
    /// - Returns: what is stored at the end
    func run() throws -> StoredFederation {
        // What is wrong with the data is found before anything is written.
        let progress = SimulationProgress(plan: plan, isQuiet: isQuiet)
        base.loadingProgress = progress.loading
        let work = try makeWork(progress)
        try Folder.create(output.path, for: "--output")
        try checkData()
        let lock = try FileLock(
            path: output.path + "/lock", taken: "another simulation writes to \(output.path): stop it, or choose another --output"
        )
        defer { withExtendedLifetime(lock) {} }
        let store = try SQLiteFederationStore(path: output.path + "/state.sqlite", durability: .processOnly)
        let maps = base.checkpoint.configuration.linearMaps
        let clock = ContinuousClock()
        let began = clock.now
        let federation = try SimulatedFederation(
            store: store, plan: plan, maps: maps, start: try RunStart(plan: plan, maps: maps, initial: initial),
            runID: "simulation-\(plan.seed)", clients: names.enumerated().map { ($1, maximumRank($0)) },
            kernelPath: try KernelPath.current().name, folder: { try clientFolder($0) }, unsafeSeed: unsafeSeed,
            stopwatch: { clock.now - began }
        ) { _, index in work[index] }
        let done = federation.service.federation.records.count
        progress.begin(round: done + 1)
        if done > 0, !isQuiet {
            Console.error("going on after round \(done) of \(plan.rounds), from \(output.path)/state.sqlite")
        }
        let reporter = RoundReporter(store: store, output: output, evaluates: evaluation != nil, done: done, report: report)
        var problem: Failure?
        federation.service.observer = { (changes: [StoreChange]) in
            do throws(Failure) { try reporter.observe(changes) } catch { problem = problem ?? error }
        }
        do throws(Failure) {
            try federation.run { _, _ in }
        } catch {
            progress.clear()
            if error.status == .interrupted {
                let rounds = federation.service.federation.records.count
                let contributions = federation.service.federation.contributions.count
                func counted(_ count: Int, _ name: String) -> String { "\(count) \(name)\(count == 1 ? "" : "s")" }
                let part = plan.privacy == .client ? "what was contributed" : counted(contributions, "contribution")
                throw Failure(
                    .interrupted,
                    "stopped in round \(rounds + 1) of \(plan.rounds); \(counted(rounds, "round")) and \(part) are kept in \(output.path): the same command goes on from there"
                )
            }
            throw error
        }
        progress.clear()
        if let problem { throw problem }
        guard let stored = try store.load() else { throw Failure(.internalError, "the simulation stored nothing") }
        try output.writeMetrics(stored)
        try output.writeRun(stored, base: absolutePath(base.checkpoint.path))
        try output.writeAdapter(
            federation.service.weights(afterRound: nil), maps: maps, base: absolutePath(base.checkpoint.path),
            headPlace: .init(base.checkpoint.configuration), labels: plan.labels)
        return stored
    }

    /// Where a client keeps residuals, noise key and ledger, if the plan has any.
    private func clientFolder(_ name: String) throws(Failure) -> ClientFolder? {
        guard plan.errorFeedback || plan.privacy == .example else { return nil }
        return try ClientFolder(path: output.path + "/clients/" + name)
    }

    /// Each client's engine, its data tokenized; says what the sequence length costs.
    private func makeWork(_ progress: SimulationProgress) throws(Failure) -> [EngineWork] {
        var changed = (cut: 0, divided: 0, dropped: 0)
        var packed = (examples: 0, bins: 0, tokens: 0)
        var all: [EngineWork] = []
        for (index, name) in names.enumerated() {
            let work = try EngineWork(
                name: name, base: base, records: parts[index], evaluationRecords: index == 0 ? evaluation : nil,
                labelField: labelField
            ) { step in
                progress.show(step)
                return !Interrupts.isInterrupted
            }
            try work.prepare(for: plan)
            let counts = work.changedCounts
            changed = (changed.cut + counts.cut, changed.divided + counts.divided, changed.dropped + counts.dropped)
            if let packing = work.packing {
                packed.examples += work.exampleCount
                packed.bins += packing.bins.count
                packed.tokens += packing.tokens
            }
            all.append(work)
        }
        let notes = dataNotes(
            cut: changed.cut, divided: changed.divided, dropped: changed.dropped, sequenceLength: plan.sequenceLength)
        if !isQuiet, let notes { Console.error(notes) }
        if !isQuiet, let note = try plan.rankCapNote(maps: base.checkpoint.configuration.linearMaps) { Console.error(note) }
        if !isQuiet,
            let note = packingNote(
                examples: packed.examples, bins: packed.bins, tokens: packed.tokens, sequenceLength: plan.sequenceLength)
        {
            Console.error(note)
        }
        return all
    }

    /// A state belongs to its data.
    private func checkData() throws(Failure) {
        let path = output.path + "/data.sha256"
        guard let known = FileManager.default.contents(atPath: path) else {
            return try FileWriting.replace(path, with: data.text)
        }
        guard let difference = data.difference(from: String(decoding: known, as: UTF8.self)) else { return }
        throw Failure(
            .cannotCreate,
            "\(output.path) holds a run on other data: \(difference); go on with the same, or choose another --output")
    }
}

/// What a simulation learns from: a digest of all of it, and what it came from, option by option, for messages.
struct SimulationData {
    /// Of every client's records, the evaluation's, and the options by which the same records become other examples.
    let digest: Digest
    /// Each a flag and its value, or a digest of the file that it names.
    let options: [(flag: String, value: String)]

    /// The digest on the first line, then an option a line.
    var text: String {
        "\(digest)\n" + options.map { "\($0.flag) \(JSONValue.string($0.value).compact)\n" }.joined()
    }

    /// What differs from the data of a text; nil if nothing does.
    func difference(from text: String) -> String? {
        let lines = text.split(separator: "\n")
        guard lines.first.map(String.init) != digest.description else { return nil }
        var known: [Substring: String] = [:]
        for line in lines.dropFirst() {
            let parts = line.split(separator: " ", maxSplits: 1)
            if parts.count == 2 { known[parts[0]] = (try? JSONValue(parsing: Array(parts[1].utf8)))?.text }
        }
        let differing = options.filter { known[Substring($0.flag)] != $0.value }.map(\.flag)
        return differing.isEmpty || known.isEmpty
            ? "--data, its division or the way to read it are others"
            : "\(differing.joined(separator: ", ")) differ\(differing.count == 1 ? "s" : "")"
    }
}

/// Writes the metrics as rounds become complete, and tells of them.
private final class RoundReporter {
    private let store: any FederationStore
    private let output: RunFolder
    private let evaluates: Bool
    private var reported: Int
    private let report: (RoundRecord, StoredFederation) -> Void

    init(
        store: any FederationStore, output: RunFolder, evaluates: Bool, done: Int,
        report: @escaping (RoundRecord, StoredFederation) -> Void
    ) {
        self.store = store
        self.output = output
        self.evaluates = evaluates
        self.report = report
        reported = evaluates ? max(0, done - 1) : done
    }

    func observe(_ changes: [StoreChange]) throws(Failure) {
        let concerns = changes.contains { change in
            switch change {
            case .closeRound, .evaluation, .finished: true
            default: false
            }
        }
        guard concerns, let stored = try store.load() else { return }
        try output.writeMetrics(stored)
        for record in stored.records where record.round > reported {
            if evaluates, !stored.evaluations.contains(where: { $0.round == record.round }) { return }
            reported = record.round
            report(record, stored)
        }
    }
}

/// What is being done: on a terminal a line that is rewritten, in a file a line every ten seconds, as rounds are lines too.
private final class SimulationProgress {
    private let plan: FederationPlan
    private let isQuiet: Bool
    private var line = ProgressLine(every: .seconds(10))
    /// Not the line's own time: a line must not be read while it is being shown.
    private let began = ContinuousClock.now

    init(plan: FederationPlan, isQuiet: Bool) {
        self.plan = plan
        self.isQuiet = isQuiet
    }

    func show(_ progress: EngineProgress) {
        guard !isQuiet else { return }
        if case .started(let summary) = progress { return Console.error(summary) }
        line.show(text(progress))
    }

    func loading(_ done: Int, _ count: Int) {
        guard !isQuiet else { return }
        line.show("loading the model: \(done) of \(count) linear maps")
    }

    private func text(_ progress: EngineProgress) -> String {
        switch progress {
        case .training(let client, let round, let step):
            let speed = Readable.decimal(step.tokensPerSecond, 0)
            let loss = Readable.decimal(step.loss, 3)
            return
                "round \(round) of \(plan.rounds), \(client): step \(step.done) of \(step.count), loss \(loss), \(speed) tokens/s\(timeLeft(round))"
        case .evaluating(_, let done, let count): return "evaluating: \(done) of \(count)"
        case .starting(let done, let count): return "computing the start: \(done) of \(count) linear maps"
        case .started(let summary): return summary
        }
    }

    /// Rounds take about equally long: those that this process has finished say how long.
    private func timeLeft(_ round: Int) -> String {
        guard let first, round > first else { return "" }
        let perRound = (ContinuousClock.now - began) / .seconds(1) / Double(round - first)
        return ", about \(Readable.duration(seconds: perRound * Double(plan.rounds - round + 1))) left"
    }

    private var first: Int?

    /// The round that this process begins with.
    func begin(round: Int) { first = round }

    func clear() { line.finish() }
}

/// A table of rounds for people.
enum RoundTable {
    static func header(_ plan: FederationPlan) -> String {
        "round  clients  train loss  eval loss"
            + (plan.task == .causal ? "  exact match" : "  accuracy  macro F1") + "        up      down   seconds"
            + (plan.privacy == .client ? "   epsilon" : "")
    }

    static func row(_ record: RoundRecord, _ stored: StoredFederation) -> String {
        let evaluation = EvaluationSummary(stored.evaluations.filter { $0.round == record.round })
        func pad(_ text: String, _ width: Int) -> String { String(repeating: " ", count: max(1, width - text.count)) + text }
        func percent(_ value: Double?, _ digits: Int) -> String {
            value.map { Readable.decimal($0 * 100, digits) + " %" } ?? "-"
        }
        let isSecret = stored.plan.privacy == .client
        return [
            pad("\(record.round)", 5),
            pad(isSecret ? "-" : "\(record.participants.count)", 9),
            pad(record.trainLoss.map { Readable.decimal($0, 4) } ?? "-", 12),
            pad(evaluation.loss.map { Readable.decimal($0, 4) } ?? "-", 11),
            stored.plan.task == .causal
                ? pad(percent(evaluation.exactMatch, 1), 13)
                : pad(percent(evaluation.accuracy, 2), 10) + pad(percent(evaluation.macroF1, 2), 10),
            pad(isSecret ? "-" : Readable.bytes(record.traffic.uplink), 10),
            pad(isSecret ? "-" : Readable.bytes(record.traffic.downlink), 10),
            pad(stored.plan.privacy == .client ? "-" : Readable.decimal(record.seconds, 1), 10),
            record.epsilon.map { pad(Readable.decimal($0, 3), 10) } ?? "",
        ].joined()
    }
}
