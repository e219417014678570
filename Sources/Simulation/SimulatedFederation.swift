/// Many clients and a coordinator in one process: the same cores and messages, a direct call instead of sockets, and a
/// clock that stands still while anyone works.
///
/// Bits are those of a deployed federation on the same partitions, seed and plan. The state is the coordinator's, so
/// that an interrupted simulation goes on with the contributions it had.

import Adapters
import Checkpoints
import ClientCore
import CoordinatorCore
import Plan
import Primitives
import Wire

/// Carries requests into the service by a call, at a time that moves only when all wait.
private final class DirectChannel: ClientChannel {
    let service: CoordinatorService
    var now: Duration = .zero
    private var sessions: SeededGenerator

    init(_ service: CoordinatorService, seed: UInt64) {
        self.service = service
        sessions = SeededGenerator(seed: seed, purpose: "simulated sessions")
    }

    func request(_ request: Request, bulk: Bool) throws(Failure) -> Reply {
        let bytes = try service.handle(request.encoded(), at: now, newSession: sessions.next())
        do throws(WireError) {
            return try Reply(decoding: bytes)
        } catch {
            throw Failure(.internalError, "the simulated coordinator's reply cannot be read: \(error)")
        }
    }
}

public final class SimulatedFederation {
    public let service: CoordinatorService
    private var clients: [FederatedClient] = []
    private let channel: DirectChannel

    /// - Parameters:
    ///   - plan: with `minimumClients` equal to the number of clients
    ///   - clients: names, ascending, and each one's `--max-rank`; nil for none
    ///   - folder: of a client, where it keeps what must outlive the process; nil keeps all in memory
    ///   - unsafeSeed: for tests of differential privacy, whose noise then follows from it
    ///   - work: each client's engine
    public init(
        store: any FederationStore, plan: FederationPlan, maps: [LinearMap], start: RunStart, runID: String,
        clients: [(name: String, maximumRank: Int?)], kernelPath: String,
        folder: (_ name: String) throws -> ClientFolder? = { _ in nil }, unsafeSeed: UInt64? = nil,
        stopwatch: @escaping () -> Duration,
        work: (_ name: String, _ index: Int) throws -> any LocalWork
    ) throws {
        service = try CoordinatorService(
            store: store, plan: plan, maps: maps, start: start, newRunID: runID, noise: CoordinatorNoise(seed: unsafeSeed),
            at: .zero,
            stopwatch: stopwatch)
        channel = DirectChannel(service, seed: plan.seed)
        let shared = SharedBlobs()
        let correction = HeldCorrection()
        for (index, (name, maximumRank)) in clients.enumerated() {
            var secrets = SeededGenerator(seed: plan.seed, purpose: "simulated secret", client: name)
            let secret = (0..<WireLimits.secretBytes).map { _ in UInt8(truncatingIfNeeded: secrets.next()) }
            let identity = ClientIdentity(
                name: name, baseDigest: plan.baseDigest, tokenizerDigest: plan.tokenizerDigest,
                maximumRank: maximumRank, kernelPath: kernelPath, maps: maps)
            self.clients.append(
                FederatedClient(
                    identity: identity, channel: channel,
                    storage: MemoryStorage(secret: secret, shared: shared, folder: try folder(name)),
                    work: try work(name, index), nonce: UInt64(index), privacy: ClientPrivacy(unsafeSeed: unsafeSeed),
                    correction: correction))
        }
    }

    /// Steps every client in turn until the run is finished.
    ///
    /// - Parameter observer: told what each client's step did
    /// - Throws: what a client or the store threw; `Failure(.internalError)` if nobody can go on
    public func run(_ observer: (_ client: String, ClientEvent) -> Void) throws(Failure) {
        var idleSweeps = 0
        while service.federation.phase != .finished {
            var worked = false
            // Nobody needs to be told the end, and a round's line is final when it is shown.
            for index in clients.indices where service.federation.phase != .finished {
                if case .worked(let event) = try clients[index].step() {
                    worked = true
                    observer(clients[index].identity.name, event)
                }
            }
            try service.tick(at: channel.now)
            if worked {
                idleSweeps = 0
                continue
            }
            // Everybody waits: time is what they wait for.
            channel.now += .milliseconds(500)
            idleSweeps += 1
            guard idleSweeps < 10_000 else {
                throw Failure(.internalError, "no simulated client can go on in round \(service.federation.currentRound)")
            }
        }
    }
}
