/// Why a request got no reply, whether asking again can help, and what to tell a person.

import CNNG
import Primitives

public enum TransportError: Error, Equatable, Sendable, CustomStringConvertible {
    /// No connection could be made.
    case unreachable(address: String, reason: String)
    /// The coordinator, or something on the way, did not answer in time.
    case timedOut(address: String, seconds: Double)
    /// The connection broke before the reply came: whether the request arrived is not known.
    case connectionLost(address: String)
    /// Something answers there, but not with our protocol.
    case notTributary(address: String)
    /// The request is larger than the other side accepts; nothing was sent.
    case tooLarge(count: Int, limit: Int)
    /// `cancel` was called.
    case cancelled
    /// `close` was called before.
    case closed
    /// Anything else that NNG reports.
    case other(address: String, code: Int32, reason: String)

    /// True where the same request may succeed later.
    public var isTransient: Bool {
        switch self {
        case .unreachable, .timedOut, .connectionLost, .other: true
        case .notTributary, .tooLarge, .cancelled, .closed: false
        }
    }

    public var description: String {
        switch self {
        case .unreachable(let address, let reason): "the coordinator at \(address) cannot be reached: \(reason)"
        case .timedOut(let address, let seconds):
            "the coordinator at \(address) did not answer within \(seconds) s: check that it runs and that the network lets it answer"
        case .connectionLost(let address):
            "the connection to the coordinator at \(address) broke before the reply: the request can be sent again"
        case .notTributary(let address):
            "what answers at \(address) is not a Tributary coordinator: check the host and the port"
        case .tooLarge(let count, let limit):
            "a request of \(count) bytes is above the limit of \(limit) and was not sent"
        case .cancelled: "the request was cancelled"
        case .closed: "the connection is closed"
        case .other(let address, let code, let reason): "the connection to \(address) failed: \(reason) (NNG error \(code))"
        }
    }

    /// The same for a person, with the exit status that fits.
    public var failure: Failure {
        switch self {
        case .unreachable, .timedOut, .connectionLost, .other: Failure(.unavailable, description)
        case .notTributary: Failure(.protocolError, description)
        case .tooLarge, .closed: Failure(.internalError, description)
        case .cancelled: Failure(.interrupted, description)
        }
    }

    /// - Parameter seconds: the time that was allowed
    init(code: Int32, address: TransportAddress, seconds: Double) {
        let name = address.description
        self =
            switch code {
            case NNGCode.connectionRefused:
                .unreachable(
                    address: name,
                    reason: "nothing listens on port \(address.port) there; start the coordinator, or check the port")
            case NNGCode.addressInvalid:
                .unreachable(address: name, reason: "the host name \(address.host) is not known; check its spelling")
            case NNGCode.unreachable: .unreachable(address: name, reason: "there is no route to that host; check the network")
            case NNGCode.timedOut: .timedOut(address: name, seconds: seconds)
            case NNGCode.connectionReset, NNGCode.connectionShut, NNGCode.connectionAborted: .connectionLost(address: name)
            case NNGCode.protocolError: .notTributary(address: name)
            case NNGCode.cancelled: .cancelled
            case NNGCode.closed: .closed
            default: .other(address: name, code: code, reason: NNGCode.text(code))
            }
    }
}

/// NNG's error codes as the integers that its functions return.
enum NNGCode {
    static let timedOut = Int32(NNG_ETIMEDOUT.rawValue)
    static let connectionRefused = Int32(NNG_ECONNREFUSED.rawValue)
    static let closed = Int32(NNG_ECLOSED.rawValue)
    static let addressInUse = Int32(NNG_EADDRINUSE.rawValue)
    static let protocolError = Int32(NNG_EPROTO.rawValue)
    static let unreachable = Int32(NNG_EUNREACHABLE.rawValue)
    static let addressInvalid = Int32(NNG_EADDRINVAL.rawValue)
    static let permission = Int32(NNG_EPERM.rawValue)
    static let connectionAborted = Int32(NNG_ECONNABORTED.rawValue)
    static let connectionReset = Int32(NNG_ECONNRESET.rawValue)
    static let cancelled = Int32(NNG_ECANCELED.rawValue)
    static let connectionShut = Int32(NNG_ECONNSHUT.rawValue)
    static let outOfMemory = Int32(NNG_ENOMEM.rawValue)

    static func text(_ code: Int32) -> String { String(cString: nng_strerror(code)) }
}
