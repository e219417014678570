/// A federation whose clients are stepped by hand, and whose every message and write can be watched, lost or stopped.

import Adapters
import Checkpoints
import ClientCore
import CoordinatorCore
import Plan
import Primitives
import Privacy
import UpdateCodec
import Wire

/// One request and its reply, as a client saw them.
struct Exchange {
    let client: String
    let request: Request
    let reply: Reply
}

final class Rig {
    let plan: FederationPlan
    let service: CoordinatorService
    let store: any FederationStore
    var now: Duration = .zero
    var log: [Exchange] = []
    /// Throws to lose a request before it arrives.
    var intercept: (_ client: String, Request) throws(Failure) -> Void = { (_, _) throws(Failure) in }
    /// Throws to lose a reply to a request that arrived.
    var interceptReply: (_ client: String, Request) throws(Failure) -> Void = { (_, _) throws(Failure) in }
    private(set) var clients: [String: FederatedClient] = [:]
    private var sessions: UInt64 = 100

    init(
        _ plan: FederationPlan, store: any FederationStore = MemoryFederationStore(), runID: String = "test",
        noiseSeed: UInt64? = nil
    ) throws {
        var plan = plan
        try plan.validate(maps: Scenario.maps)
        try plan.settlePrivacy()
        self.plan = plan
        self.store = store
        service = try CoordinatorService(
            store: store, plan: plan, maps: Scenario.maps,
            start: try RunStart(plan: plan, maps: Scenario.maps, initial: nil), newRunID: runID,
            noise: CoordinatorNoise(seed: noiseSeed), at: .zero, stopwatch: { .zero })
    }

    /// Starts a client, or starts it again with what its storage holds.
    func start(
        _ name: String, _ storage: any ClientStorage, _ work: any LocalWork, maximumRank: Int? = nil,
        privacy: ClientPrivacy = ClientPrivacy()
    ) {
        clients[name] = FederatedClient(
            identity: ClientIdentity(
                name: name, baseDigest: plan.baseDigest, tokenizerDigest: plan.tokenizerDigest, maximumRank: maximumRank,
                kernelPath: "scripted", maps: Scenario.maps),
            channel: Line(self, name), storage: storage, work: work, nonce: 0, privacy: privacy)
    }

    @discardableResult func step(_ name: String) throws(Failure) -> ClientStep {
        guard var client = clients[name] else { return .finished(reason: "no such client") }
        defer { clients[name] = client }
        return try client.step()
    }

    /// Lets a client go away as a process does that ends.
    func leave(_ name: String, reason: String) { clients[name]?.leave(reason: reason) }

    /// Steps this client until it waits or is done: why.
    @discardableResult func stepUntilItWaits(_ name: String) throws(Failure) -> String {
        for _ in 0..<100 {
            switch try step(name) {
            case .worked: continue
            case .wait(_, let reason), .finished(let reason): return reason
            }
        }
        throw Failure(.internalError, "\(name) never waits")
    }

    /// Steps these in turn until the run is finished or the round is reached.
    func run(_ names: [String], untilRound round: Int = .max) throws(Failure) {
        for _ in 0..<10_000 {
            guard service.federation.phase != .finished, service.federation.currentRound < round else { return }
            var worked = false
            for name in names {
                if case .worked = try step(name) { worked = true }
            }
            try service.tick(at: now)
            if !worked { now += .milliseconds(500) }
        }
        throw Failure(.internalError, "the run never ends: \(service.federation.phase)")
    }

    /// Lets the open round's deadline pass.
    func passDeadline() throws(Failure) {
        now += .seconds(plan.deadlineSeconds + 1)
        try service.tick(at: now)
    }

    /// Bytes of this client's contribution to a round, as they went into the channel.
    func uploaded(_ name: String, round: Int) -> [UInt8] {
        var bytes: [UInt8] = []
        for exchange in log where exchange.client == name {
            guard case .uploadChunk(let chunk) = exchange.request, chunk.kind == .update, Int(chunk.round) == round else {
                continue
            }
            if chunk.index == 0 { bytes = [] }
            bytes += chunk.bytes
        }
        return bytes
    }

    func commits(_ name: String? = nil) -> [Commit] {
        log.compactMap { exchange in
            guard name == nil || exchange.client == name, case .commit(let commit) = exchange.request else { return nil }
            return commit
        }
    }

    func state(afterRound round: Int? = nil) throws -> AdapterState { try service.weights(afterRound: round).trained }
    func digest() throws -> Digest { try Scenario.digest(service.weights(afterRound: nil)) }

    /// A client's line to the service.
    private final class Line: ClientChannel {
        unowned let rig: Rig
        let name: String

        init(_ rig: Rig, _ name: String) {
            self.rig = rig
            self.name = name
        }

        func request(_ request: Request, bulk: Bool) throws(Failure) -> Reply {
            try rig.intercept(name, request)
            rig.sessions += 1
            let bytes = try rig.service.handle(request.encoded(), at: rig.now, newSession: rig.sessions)
            try rig.interceptReply(name, request)
            do throws(WireError) {
                let reply = try Reply(decoding: bytes)
                rig.log.append(Exchange(client: name, request: request, reply: reply))
                return reply
            } catch {
                throw Failure(.internalError, "\(error)")
            }
        }
    }
}

/// Training as a formula of the assignment, which is remembered.
final class FormulaWork: LocalWork {
    var exampleCount: Int
    var hasEvaluationData = false
    var dataDigest: Digest
    private let formula: (TrainingAssignment) -> AdapterState
    private(set) var assignments: [TrainingAssignment] = []
    /// Trained minus given, in the order of the assignments.
    private(set) var updates: [AdapterState] = []
    private(set) var evaluations = 0

    init(_ name: String, exampleCount: Int = 100, _ formula: @escaping (TrainingAssignment) -> AdapterState) {
        self.exampleCount = exampleCount
        dataDigest = Digest(of: Array(name.utf8))
        self.formula = formula
    }

    /// Moves by draws from U(-bound, bound) that depend on client and round alone.
    convenience init(_ name: String, bound: Float = 0.1, exampleCount: Int = 100) {
        self.init(name, exampleCount: exampleCount) { assignment in
            var generator = SeededGenerator(seed: 5, purpose: "formula", round: assignment.round, client: assignment.client)
            var state = assignment.weights.trained
            for index in state.values.indices { state.values[index] += generator.symmetric(bound) }
            return state
        }
    }

    /// Moves by a vector of this length whose direction depends on the client alone.
    convenience init(_ name: String, norm: Double) {
        self.init(name) { assignment in
            var generator = SeededGenerator(seed: 6, purpose: "direction", client: assignment.client)
            var state = assignment.weights.trained
            let direction = state.values.map { _ in Double(generator.symmetric(1)) }
            let length = direction.reduce(0) { $0 + $1 * $1 }.squareRoot()
            for index in state.values.indices { state.values[index] += Float(direction[index] / length * norm) }
            return state
        }
    }

    func prepare(for plan: FederationPlan) throws(Failure) {}

    func train(
        _ assignment: TrainingAssignment, progress: (Int, Int) -> WorkInterruption?
    ) throws(WorkInterruption) -> TrainedResult {
        assignments.append(assignment)
        if let interruption = progress(1, 1) { throw interruption }
        let state = formula(assignment)
        updates.append(state.update(since: assignment.weights.trained))
        return TrainedResult(state: state, trainLoss: 1.25, targetTokens: 77, seconds: 2)
    }

    func evaluate(_ weights: AdapterWeights, plan: FederationPlan) throws(Failure) -> EvaluationResult {
        evaluations += 1
        return EvaluationResult(lossSum: 3, targetTokens: 7, examples: 3, exactMatches: nil)
    }

    func start(plan: FederationPlan, client: String, specification: AdapterSpecification) throws(Failure) -> AdapterState {
        var generator = SeededGenerator(seed: plan.seed, purpose: "formula start", client: client)
        var state = AdapterState(zeros: specification.startLayout)
        for index in state.values.indices { state.values[index] = generator.symmetric(0.5) }
        return state
    }
}

/// A client's storage that can be watched, and that dies after some writes, as a killed process does.
final class WatchedStorage: ClientStorage {
    let inner: any ClientStorage
    var writesLeft = Int.max
    /// Told of each write once it is done.
    var observer: (String) -> Void = { _ in }

    init(_ inner: any ClientStorage) { self.inner = inner }

    static func inMemory(_ name: String) -> WatchedStorage {
        WatchedStorage(
            MemoryStorage(secret: Array(Digest(of: Array(name.utf8)).bytes), shared: SharedBlobs()))
    }

    private func write(_ what: String, _ body: () throws(Failure) -> Void) throws(Failure) {
        guard writesLeft > 0 else { throw Failure(.ioError, "killed") }
        writesLeft -= 1
        try body()
        observer(what)
    }

    func secret() throws(Failure) -> [UInt8] { try inner.secret() }
    func noiseKey() throws(Failure) -> NoiseKey { try inner.noiseKey() }
    func record(run: String) throws(Failure) -> ClientRecord? { try inner.record(run: run) }
    func keep(_ record: ClientRecord, bytes: [[UInt8]]) throws(Failure) {
        try write("record") { () throws(Failure) in try inner.keep(record, bytes: bytes) }
    }
    func bytes(_ digest: Digest) throws(Failure) -> [UInt8]? { try inner.bytes(digest) }
    func ledger() throws(Failure) -> PrivacyLedger { try inner.ledger() }
    func keep(_ ledger: PrivacyLedger) throws(Failure) {
        try write("ledger") { () throws(Failure) in try inner.keep(ledger) }
    }
    func blob(_ digest: Digest) throws(Failure) -> [UInt8]? { try inner.blob(digest) }
    func keepBlob(_ digest: Digest, bytes: [UInt8]) throws(Failure) {
        try write("blob") { () throws(Failure) in try inner.keepBlob(digest, bytes: bytes) }
    }
    func retainBlobs(_ digests: Set<Digest>) throws(Failure) { try inner.retainBlobs(digests) }
}

extension AdapterState {
    var norm: Double { values.reduce(0.0) { $0 + Double($1) * Double($1) }.squareRoot() }
}
