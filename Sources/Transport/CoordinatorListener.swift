/// The coordinator's end: one reply socket, several contexts that receive at the same time, one handler that answers
/// one request after the other.
///
/// Back-pressure: a connection has at most one request inside; what no context has taken stays in the client's
/// TCP stream. Nothing larger than the frame limit is received: NNG closes the connection that claims more.

import CNNG
import Primitives
import Synchronization
import Wire

public final class CoordinatorListener: Sendable {
    /// Where it listens, with the port that was chosen if 0 was asked for.
    public let address: TransportAddress

    private let socket: UInt32
    private let contexts: [UInt32]
    private let frameLimit: Int
    private let stopping = Atomic<Bool>(false)
    private let closed = Atomic<Bool>(false)
    /// Held while the handler or the tick runs: they see one caller at a time.
    private let turn = Mutex<Void>(())

    /// A receive waits this long before it looks whether to stop: polling avoids cancelling, of which NNG 1.5 has had
    /// several races.
    private static let receiveMilliseconds: Int32 = 250

    /// A reply that NNG cannot take in this time goes to a client that has stopped reading; it is dropped, and the
    /// client asks again.
    private static let sendMilliseconds: Int32 = 1000

    /// Opens the socket and listens; requests are received once `run` is called.
    ///
    /// - Parameters:
    ///   - contexts: requests that can be received and replies that can be sent at the same time
    ///   - frameLimit: the largest request, in bytes
    /// - Throws: `Failure(.unavailable)` if the address is in use, not this machine's, or not allowed
    public init(
        listening address: TransportAddress, contexts count: Int = 8, frameLimit: Int = WireLimits.frameBytes
    ) throws(Failure) {
        precondition(count >= 1, "a listener has at least one context")
        var socket = nng_socket()
        var listener = nng_listener()
        func check(_ code: Int32) throws(Failure) {
            guard code != 0 else { return }
            if socket.id != 0 { nng_close(socket) }
            throw Self.failure(code, address)
        }
        try check(nng_rep0_open(&socket))
        try check(nng_listener_create(&listener, socket, address.description))
        // The limit counts NNG's own 4-byte request number too.
        try check(nng_listener_set_size(listener, NNG_OPT_RECVMAXSZ, frameLimit + 64))
        try check(nng_listener_set_bool(listener, NNG_OPT_TCP_KEEPALIVE, true))
        var opened: [UInt32] = []
        for _ in 0..<count {
            var context = nng_ctx()
            try check(nng_ctx_open(&context, socket))
            opened.append(context.id)
        }
        try check(nng_listener_start(listener, 0))
        var port = Int32(address.port)
        try check(nng_listener_get_int(listener, NNG_OPT_TCP_BOUND_PORT, &port))
        self.address = TransportAddress(host: address.host, port: UInt16(truncatingIfNeeded: port))
        self.socket = socket.id
        self.frameLimit = frameLimit
        contexts = opened
    }

    deinit { close() }

    /// Answers requests until `stop`; blocks the calling thread.
    ///
    /// - Parameters:
    ///   - tickSeconds: time between ticks
    ///   - tick: called in turn with the handler, for deadlines; nil for none
    ///   - handler: a request's bytes to a reply's; called by several threads, one at a time
    /// - Throws: `Failure(.unavailable)` if the system allows no thread
    public func run(
        tickSeconds: Double = 0.25, tick: (@Sendable () -> Void)? = nil,
        handler: @escaping @Sendable (_ request: [UInt8]) -> [UInt8]
    ) throws(Failure) {
        var workers: [WorkerThread] = []
        for context in contexts {
            guard let worker = WorkerThread({ [self] in serve(nng_ctx(id: context), handler) }) else { break }
            workers.append(worker)
        }
        guard !workers.isEmpty else {
            throw Failure(.unavailable, "the system allows no more threads: raise the limit (ulimit -u) or stop other programs")
        }
        if let tick {
            let period = Duration.seconds(tickSeconds)
            var next = ContinuousClock.now + period
            while !stopping.load(ordering: .acquiring) {
                let left = (next - ContinuousClock.now) / Duration.milliseconds(1)
                guard left <= 0 else {
                    pause(milliseconds: min(100, max(1, Int(left))))
                    continue
                }
                turn.withLock { _ in if !stopping.load(ordering: .acquiring) { tick() } }
                next = ContinuousClock.now + period
            }
        }
        for worker in workers { worker.join() }
    }

    /// Makes `run` return within about a quarter of a second, after the requests in hand have been answered. May be
    /// called from anywhere, also from the handler, whose reply is still sent.
    public func stop() { stopping.store(true, ordering: .releasing) }

    /// Frees the port. Call it after `run` has returned.
    public func close() {
        stop()
        guard !closed.exchange(true, ordering: .acquiringAndReleasing) else { return }
        // NNG has no linger: closing at once could cut the last replies off.
        pause(milliseconds: 100)
        closeSocket(socket)
    }

    private func serve(_ context: nng_ctx, _ handler: @Sendable ([UInt8]) -> [UInt8]) {
        guard let operation = Operation() else { return }
        while !stopping.load(ordering: .acquiring) {
            let (code, request, _) = operation.receive(milliseconds: Self.receiveMilliseconds) { nng_ctx_recv(context, $0) }
            if code == NNGCode.closed { return }
            guard code == 0 else {
                if code != NNGCode.timedOut { pause(milliseconds: 10) }
                continue
            }
            var reply = turn.withLock { _ in handler(request) }
            if reply.count > frameLimit {
                let message = "the reply of \(reply.count) bytes is above the limit of \(frameLimit)"
                reply = Reply.refused(Refusal(code: .tooLarge, message: message)).encoded()
            }
            // A failure means that the client is gone or has stopped reading: it will ask again.
            _ = operation.send(reply, milliseconds: Self.sendMilliseconds) { nng_ctx_send(context, $0) }
        }
    }

    private static func failure(_ code: Int32, _ address: TransportAddress) -> Failure {
        let reason =
            switch code {
            case NNGCode.addressInUse:
                "port \(address.port) is in use, perhaps by another coordinator: stop that one, or choose another port with --listen"
            case NNGCode.permission: "this user may not open port \(address.port): choose a port from 1024 up"
            case NNGCode.addressInvalid: "\(address.host) is not an address of this machine: use 0.0.0.0 for all of them"
            default: NNGCode.text(code)
            }
        return Failure(.unavailable, "cannot listen on \(address): \(reason)")
    }
}
