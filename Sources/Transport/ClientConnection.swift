/// The client's end: one request socket with one connection, one request at a time.
///
/// A client opens two: a control connection for polls and heartbeats, a bulk connection for chunks, so that a chunk on
/// a slow uplink never delays a heartbeat. NNG's own resending is off, because it repeats a whole request while the
/// peer is still busy with it; `RequestPolicy` decides when to ask again.

import CNNG
import Primitives
import Synchronization
import Wire

// `@unchecked Sendable`: everything that changes is inside `state`'s lock, and the operation's handle, which only
// `cancel` uses outside of it, is immutable, lives as long as the object, and may be cancelled from any thread.
public final class ClientConnection: @unchecked Sendable {
    public let address: TransportAddress

    private let socket: UInt32
    private let frameLimit: Int
    private let operation: Operation
    private let state = Mutex(State())

    private struct State {
        var closed = false
        /// The connection that the last reply came over.
        var pipe: UInt32 = 0
    }

    /// Dials and waits for the connection; afterwards NNG dials again by itself whenever it breaks.
    ///
    /// - Parameters:
    ///   - connectTimeoutSeconds: for the first connection
    ///   - frameLimit: the largest request and reply, in bytes
    /// - Throws: `TransportError` with the reason: nothing listens, unknown host, not a coordinator, no answer
    public init(
        to address: TransportAddress, connectTimeoutSeconds: Double = 10, frameLimit: Int = WireLimits.frameBytes
    ) throws(TransportError) {
        func fail(_ code: Int32) -> TransportError {
            TransportError(code: code, address: address, seconds: connectTimeoutSeconds)
        }
        guard let operation = Operation() else { throw fail(NNGCode.outOfMemory) }
        try Self.probe(address, operation, connectTimeoutSeconds)

        var socket = nng_socket()
        var dialer = nng_dialer()
        func check(_ code: Int32) throws(TransportError) {
            guard code != 0 else { return }
            if socket.id != 0 { nng_close(socket) }
            throw fail(code)
        }
        try check(nng_req0_open(&socket))
        try check(nng_socket_set_ms(socket, NNG_OPT_REQ_RESENDTIME, NNG_DURATION_INFINITE))
        // NNG 1.5 waits a random part of these between its attempts, and often not at all: the upper one keeps a
        // thousand clients from knocking many times a second.
        try check(nng_socket_set_ms(socket, NNG_OPT_RECONNMINT, 500))
        try check(nng_socket_set_ms(socket, NNG_OPT_RECONNMAXT, 5000))
        try check(nng_dialer_create(&dialer, socket, address.description))
        try check(nng_dialer_set_size(dialer, NNG_OPT_RECVMAXSZ, frameLimit + 64))
        try check(nng_dialer_set_bool(dialer, NNG_OPT_TCP_KEEPALIVE, true))
        // Blocking, so that the reason of a failure is known: in the background NNG would retry silently for ever.
        try check(nng_dialer_start(dialer, 0))
        self.address = address
        self.socket = socket.id
        self.frameLimit = frameLimit
        self.operation = operation
    }

    deinit { close() }

    /// Sends a request and waits for its reply; blocks the calling thread. Calls from several threads take turns.
    ///
    /// - Parameter timeoutSeconds: for sending and replying together, reconnecting included
    /// - Throws: `TransportError`; after a transient one the request may or may not have arrived
    public func request(_ bytes: [UInt8], timeoutSeconds: Double) throws(TransportError) -> [UInt8] {
        guard bytes.count <= frameLimit else { throw .tooLarge(count: bytes.count, limit: frameLimit) }
        return try state.withLock { state throws(TransportError) in
            guard !state.closed else { throw .closed }
            let deadline = ContinuousClock.now + .seconds(timeoutSeconds)
            func left() -> Int32 { milliseconds((deadline - ContinuousClock.now) / .seconds(1)) }
            let socket = nng_socket(id: socket)
            // Sending has ended before receiving starts: an NNG 1.5 request socket may crash when a receive is given
            // up while its send is waiting.
            let sent = operation.send(bytes, milliseconds: left()) { nng_send_aio(socket, $0) }
            guard sent == 0 else {
                let error = fail(sent, &state, timeoutSeconds)
                guard sent == NNGCode.timedOut else { throw error }
                throw .unreachable(
                    address: address.description,
                    reason: "there was no connection for \(timeoutSeconds) s; the coordinator may be down or restarting")
            }
            let (code, reply, pipe) = operation.receive(milliseconds: left()) { nng_recv_aio(socket, $0) }
            guard code == 0 else { throw fail(code, &state, timeoutSeconds) }
            state.pipe = pipe
            return reply
        }
    }

    /// Makes a request that is waiting on another thread end with `.cancelled`; the connection stays usable.
    public func cancel() { nng_aio_cancel(operation.handle) }

    /// Closes the socket, after the request in hand has ended.
    public func close() {
        state.withLock { state in
            guard !state.closed else { return }
            state.closed = true
            closeSocket(socket)
        }
    }

    private func fail(_ code: Int32, _ state: inout State, _ seconds: Double) -> TransportError {
        if code == NNGCode.timedOut, state.pipe != 0 {
            // The connection may be dead without either side knowing (a router forgot it): TCP takes a quarter of an
            // hour to notice. Closing it makes NNG dial a new one.
            nng_pipe_close(nng_pipe(id: state.pipe))
            state.pipe = 0
        }
        return TransportError(code: code, address: address, seconds: seconds)
    }

    /// Connects once over plain TCP: unlike NNG's own dialing, this ends at the time limit.
    private static func probe(
        _ address: TransportAddress, _ operation: borrowing Operation, _ seconds: Double
    ) throws(TransportError) {
        var dialer: OpaquePointer?
        let allocated = nng_stream_dialer_alloc(&dialer, address.description)
        guard allocated == 0, let dialer else { throw TransportError(code: allocated, address: address, seconds: seconds) }
        let code = operation.wait(milliseconds: milliseconds(seconds)) { nng_stream_dialer_dial(dialer, $0) }
        if code == 0, let stream = nng_aio_get_output(operation.handle, 0) {
            nng_stream_close(OpaquePointer(stream))
            nng_stream_free(OpaquePointer(stream))
        }
        nng_stream_dialer_close(dialer)
        nng_stream_dialer_free(dialer)
        guard code == 0 else { throw TransportError(code: code, address: address, seconds: seconds) }
    }
}
