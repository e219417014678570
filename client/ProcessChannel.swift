/// Requests over two NNG connections, asked again until they are answered; heartbeats in the background.
///
/// Heartbeats do not go out with the training's steps: a step may take a minute, and loading, evaluating and Fed-SB's
/// start have no steps at all. A thread sends them on the control connection, which is idle while the engine works.

import ClientCore
import Logging
import Primitives
import Programs
import Synchronization
import Transport
import Wire

// `@unchecked Sendable`: the thread of the heartbeats and that of the signals use `state`, which has a lock, and the
// connections, which are `Sendable`; everything else is immutable.
final class ProcessChannel: ClientChannel, @unchecked Sendable {
    /// Seconds for a control request and its reply; the coordinator may be combining a round.
    private static let controlSeconds = 15.0
    /// Seconds for a chunk of 256 KiB: enough for 100 kbit/s.
    private static let bulkSeconds = 30.0
    private static let farewellSeconds = 2.0
    private static let connectSeconds = 5.0

    let address: TransportAddress
    private let policy: RequestPolicy
    private let logger: Logger
    private let state = Mutex(State())

    private struct State {
        var control: ClientConnection?
        var bulk: ClientConnection?
        /// Set by `leave`: the one request that a signal does not end.
        var isLeaving = false
        var session: UInt64?
        var heartbeatSeconds = 10.0
        var lastRequest = ContinuousClock.now
        /// The work in hand, or nil.
        var work: Work?
        /// Why the coordinator no longer wants it.
        var verdict: String?
        /// Round of the last task.
        var round: UInt32 = 0
    }

    struct Work {
        var step: UInt32 = 0
        var steps: UInt32 = 0
    }

    /// - Parameter giveUpAfterSeconds: out of reach for so long; nil never gives up
    init(address: TransportAddress, giveUpAfterSeconds: Double?, logger: Logger) {
        self.address = address
        policy = RequestPolicy(giveUpAfterSeconds: giveUpAfterSeconds)
        self.logger = logger
    }

    // MARK: - Requests

    func request(_ request: Request, bulk: Bool) throws(Failure) -> Reply {
        if case .heartbeat(let heartbeat) = request { return note(heartbeat) }
        var isLeave = false
        if case .leave = request { isLeave = true }
        if isLeave { state.withLock { $0.isLeaving = true } }
        let bytes = request.encoded()
        let seconds = isLeave ? Self.farewellSeconds : bulk ? Self.bulkSeconds : Self.controlSeconds
        let answer: [UInt8]
        do throws(TransportError) {
            if isLeave {
                guard let control = state.withLock({ $0.control }) else { throw TransportError.closed }
                answer = try control.request(bytes, timeoutSeconds: seconds)
            } else {
                answer = try repeatedly { () throws(TransportError) in
                    try self.connection(bulk: bulk).request(bytes, timeoutSeconds: seconds)
                }
            }
        } catch {
            throw error.failure
        }
        let reply: Reply
        do throws(WireError) {
            reply = try Reply(decoding: answer)
        } catch {
            throw error.failure(from: address.description)
        }
        remember(reply)
        return reply
    }

    /// Asks again after transient errors, and says each time what it waits for.
    private func repeatedly<T>(_ body: () throws(TransportError) -> T) throws(TransportError) -> T {
        var generator = SystemRandomNumberGenerator()
        let began = ContinuousClock.now
        return try policy.perform(
            using: &generator, now: { (ContinuousClock.now - began) / .seconds(1) },
            wait: { seconds, reason in
                guard !Interrupts.isInterrupted else { return false }
                logger.warning("\(reason); asking again\(seconds < 0.1 ? "" : " in \(Readable.duration(seconds: seconds))")")
                return Interrupts.sleep(seconds: seconds)
            }, body)
    }

    private func connection(bulk: Bool) throws(TransportError) -> ClientConnection {
        if let known = state.withLock({ bulk ? $0.bulk : $0.control }) { return known }
        guard !Interrupts.isInterrupted else { throw .cancelled }
        let opened = try ClientConnection(to: address, connectTimeoutSeconds: Self.connectSeconds)
        state.withLock { state in
            if bulk { state.bulk = opened } else { state.control = opened }
        }
        return opened
    }

    private func remember(_ reply: Reply) {
        state.withLock { state in
            state.lastRequest = .now
            switch reply {
            case .welcome(let welcome):
                state.session = welcome.session
                state.heartbeatSeconds = Double(max(1, welcome.heartbeatSeconds))
            case .task(let reply):
                switch reply.task {
                case .train(let task): state.round = task.round
                case .evaluate(let task): state.round = task.round
                case .start: state.round = 0
                case .wait, .finished: break
                }
            default: break
            }
        }
    }

    /// Ends requests that wait, and those that will, except `leave`: called after a signal, on a thread of its own.
    func interruptRequests() {
        while true {
            let waiting = state.withLock { state in state.isLeaving ? nil : [state.control, state.bulk] }
            guard let waiting else { return }
            // Again and again: a request may be between sending and receiving, or about to start.
            for connection in waiting { connection?.cancel() }
            Interrupts.pause(milliseconds: 100)
        }
    }

    // MARK: - Heartbeats

    /// Sends heartbeats until `endWork`.
    func beginWork() {
        let isFirst = state.withLock { state in
            defer { if state.work == nil { state.work = Work() } }
            state.verdict = nil
            return state.work == nil
        }
        if isFirst { _ = DetachedThread.start { [self] in beat() } }
    }

    func endWork() { state.withLock { $0.work = nil } }

    /// What the training's progress asks: answered from the last heartbeat's reply.
    private func note(_ heartbeat: Heartbeat) -> Reply {
        let verdict = state.withLock { state in
            state.work?.step = heartbeat.step
            state.work?.steps = heartbeat.totalSteps
            return state.verdict
        }
        return .heartbeatReply(HeartbeatReply(keepGoing: verdict == nil, reason: verdict ?? ""))
    }

    private func beat() {
        while true {
            Interrupts.pause(milliseconds: 200)
            var due: (ClientConnection, Heartbeat, Double)?
            let isOver = state.withLock { state in
                guard let work = state.work else { return true }
                let elapsed = (ContinuousClock.now - state.lastRequest) / .seconds(1)
                if let session = state.session, let control = state.control, elapsed >= state.heartbeatSeconds {
                    state.lastRequest = .now
                    let beat = Heartbeat(session: session, round: state.round, step: work.step, totalSteps: work.steps)
                    due = (control, beat, state.heartbeatSeconds)
                }
                return false
            }
            if isOver { return }
            guard let (control, beat, seconds) = due else { continue }
            // A coordinator that cannot be reached now is no reason to stop: the work may count later.
            guard let bytes = try? control.request(Request.heartbeat(beat).encoded(), timeoutSeconds: seconds),
                case .heartbeatReply(let reply)? = try? Reply(decoding: bytes), !reply.keepGoing
            else { continue }
            state.withLock { state in if state.work != nil { state.verdict = reply.reason } }
        }
    }
}
