/// Everything that a client can ask: a kind byte and a body. Every request may be sent again without harm.

import Primitives

public enum Request: Equatable, Sendable {
    case hello(Hello)
    case poll(Poll)
    case fetchChunk(FetchChunk)
    case uploadChunk(UploadChunk)
    case commit(Commit)
    case reportEvaluation(ReportEvaluation)
    case heartbeat(Heartbeat)
    case leave(Leave)
    case inquire(Inquire)

    enum Kind: UInt8 {
        case hello = 1
        case poll = 2
        case fetchChunk = 3
        case uploadChunk = 4
        case commit = 5
        case reportEvaluation = 6
        case heartbeat = 7
        case leave = 8
        case inquire = 9
    }

    private var parts: (Kind, any WireFields) {
        switch self {
        case .hello(let message): (.hello, message)
        case .poll(let message): (.poll, message)
        case .fetchChunk(let message): (.fetchChunk, message)
        case .uploadChunk(let message): (.uploadChunk, message)
        case .commit(let message): (.commit, message)
        case .reportEvaluation(let message): (.reportEvaluation, message)
        case .heartbeat(let message): (.heartbeat, message)
        case .leave(let message): (.leave, message)
        case .inquire(let message): (.inquire, message)
        }
    }

    /// The whole frame.
    public func encoded() -> [UInt8] {
        let (kind, message) = parts
        var writer = ByteWriter(capacity: kind == .uploadChunk ? WireLimits.chunkBodyBytes : 256)
        message.write(to: &writer)
        return Frame(kind: kind.rawValue, body: writer.bytes).encoded()
    }

    /// Reads one whole frame and nothing else.
    public init(decoding bytes: [UInt8]) throws(WireError) {
        let frame = try Frame(decoding: bytes) { kind in
            switch Kind(rawValue: kind) {
            case nil: nil
            case .uploadChunk: WireLimits.chunkBodyBytes
            default: WireLimits.controlBodyBytes
            }
        }
        guard let kind = Kind(rawValue: frame.kind) else { throw .unknownKind(frame.kind) }
        var reader = FieldReader(frame.body)
        switch kind {
        case .hello: self = .hello(try Hello(from: &reader))
        case .poll: self = .poll(try Poll(from: &reader))
        case .fetchChunk: self = .fetchChunk(try FetchChunk(from: &reader))
        case .uploadChunk: self = .uploadChunk(try UploadChunk(from: &reader))
        case .commit: self = .commit(try Commit(from: &reader))
        case .reportEvaluation: self = .reportEvaluation(try ReportEvaluation(from: &reader))
        case .heartbeat: self = .heartbeat(try Heartbeat(from: &reader))
        case .leave: self = .leave(try Leave(from: &reader))
        case .inquire: self = .inquire(try Inquire(from: &reader))
        }
        try reader.finish()
    }
}
