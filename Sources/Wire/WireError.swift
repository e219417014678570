/// Why bytes from the other side are not a message, with the sentence and the refusal that each reason leads to.

import Primitives

public enum WireError: Error, Equatable, Sendable, CustomStringConvertible {
    /// Fewer bytes than the header, or than the header's body length, promise.
    case truncated(needed: Int, available: Int)
    /// The first four bytes are not "TRIB": this is not Tributary's protocol.
    case notTributary
    case unsupportedVersion(UInt8)
    /// A kind that does not exist, or a reply where a request belongs.
    case unknownKind(UInt8)
    case reservedNotZero
    case bodyTooLarge(count: Int, limit: Int)
    case trailing(Int)
    case badChecksum
    /// The checksum is right and a field is not: a defect of the sender.
    case malformed(field: String, problem: String)

    public var description: String {
        switch self {
        case .truncated(let needed, let available):
            "the message is cut off: it needs \(needed) bytes and has \(available)"
        case .notTributary: "the message does not start with TRIB: the other side is not Tributary"
        case .unsupportedVersion(let version):
            "the other side speaks protocol version \(version) and this side version \(WireLimits.protocolVersion): install the same release of Tributary on both"
        case .unknownKind(let kind): "message kind \(kind) is unknown here"
        case .reservedNotZero: "the message's reserved bytes are not zero"
        case .bodyTooLarge(let count, let limit): "the message's body has \(count) bytes; the most is \(limit)"
        case .trailing(let count): "the message has \(count) bytes after its end"
        case .badChecksum: "the message's checksum is wrong: it was damaged on its way"
        case .malformed(let field, let problem): "the message's field \(field) is wrong: \(problem)"
        }
    }

    /// What a coordinator answers to a request that it could not decode.
    public var refusal: Refusal {
        switch self {
        case .unsupportedVersion(let version):
            Refusal(
                code: .protocolVersion,
                message:
                    "the client speaks protocol version \(version) and this coordinator version \(WireLimits.protocolVersion): install the same release of Tributary on both"
            )
        case .bodyTooLarge: Refusal(code: .tooLarge, message: description)
        // Damage on the way: the same request may arrive whole the next time.
        case .badChecksum: Refusal(code: .badMessage, message: description, retryAfterMilliseconds: 1000)
        default: Refusal(code: .badMessage, message: description)
        }
    }

    /// What a client tells its user about a reply that it could not decode.
    ///
    /// - Parameter address: where the reply came from
    public func failure(from address: String) -> Failure {
        switch self {
        case .unsupportedVersion(let version):
            Failure(
                .protocolError,
                "the coordinator at \(address) speaks protocol version \(version) and this client version \(WireLimits.protocolVersion): install the same release of Tributary on both"
            )
        default: Failure(.protocolError, "the coordinator at \(address) sent a reply that makes no sense: \(description)")
        }
    }
}
