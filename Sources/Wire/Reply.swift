/// Everything that a coordinator can answer: a kind byte and a body.

import Primitives

public enum Reply: Equatable, Sendable {
    case welcome(Welcome)
    case task(TaskReply)
    case chunk(Chunk)
    case chunkReceived(ChunkReceived)
    case committed(Committed)
    /// To an evaluation's report and to leave.
    case acknowledged
    case heartbeatReply(HeartbeatReply)
    case refused(Refusal)
    case announcement(Announcement)

    enum Kind: UInt8 {
        case welcome = 129
        case task = 130
        case chunk = 131
        case chunkReceived = 132
        case committed = 133
        case acknowledged = 134
        case heartbeatReply = 135
        case refused = 136
        case announcement = 137
    }

    private var parts: (Kind, (any WireFields)?) {
        switch self {
        case .welcome(let message): (.welcome, message)
        case .task(let message): (.task, message)
        case .chunk(let message): (.chunk, message)
        case .chunkReceived(let message): (.chunkReceived, message)
        case .committed(let message): (.committed, message)
        case .acknowledged: (.acknowledged, nil)
        case .heartbeatReply(let message): (.heartbeatReply, message)
        case .refused(let message): (.refused, message)
        case .announcement(let message): (.announcement, message)
        }
    }

    /// The whole frame.
    public func encoded() -> [UInt8] {
        let (kind, message) = parts
        var writer = ByteWriter(capacity: kind == .chunk ? WireLimits.chunkBodyBytes : 256)
        message?.write(to: &writer)
        return Frame(kind: kind.rawValue, body: writer.bytes).encoded()
    }

    /// Reads one whole frame and nothing else.
    public init(decoding bytes: [UInt8]) throws(WireError) {
        let frame = try Frame(decoding: bytes) { kind in
            switch Kind(rawValue: kind) {
            case nil: nil
            case .chunk: WireLimits.chunkBodyBytes
            default: WireLimits.controlBodyBytes
            }
        }
        guard let kind = Kind(rawValue: frame.kind) else { throw .unknownKind(frame.kind) }
        var reader = FieldReader(frame.body)
        switch kind {
        case .welcome: self = .welcome(try Welcome(from: &reader))
        case .task: self = .task(try TaskReply(from: &reader))
        case .chunk: self = .chunk(try Chunk(from: &reader))
        case .chunkReceived: self = .chunkReceived(try ChunkReceived(from: &reader))
        case .committed: self = .committed(try Committed(from: &reader))
        case .acknowledged: self = .acknowledged
        case .heartbeatReply: self = .heartbeatReply(try HeartbeatReply(from: &reader))
        case .refused: self = .refused(try Refusal(from: &reader))
        case .announcement: self = .announcement(try Announcement(from: &reader))
        }
        try reader.finish()
    }
}
