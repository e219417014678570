/// How bytes too large for one message travel: chunks down by digest, chunks up, and the commit that makes them count.

import Primitives

/// Where the chunks of a blob or contribution begin and end. Every chunk but the last is full; an empty blob is one empty chunk.
public enum Chunking {
    /// 16 GiB.
    public static let largestByteCount = UInt64(WireLimits.chunkCount * WireLimits.chunkBytes)

    /// - Parameter byteCount: at most `largestByteCount`
    public static func count(ofByteCount byteCount: Int) -> Int {
        max(1, (byteCount + WireLimits.chunkBytes - 1) / WireLimits.chunkBytes)
    }

    /// The bytes of a chunk, as positions in the whole; nil if there is no such chunk.
    public static func range(ofChunk index: Int, byteCount: Int) -> Range<Int>? {
        guard index >= 0, index < count(ofByteCount: byteCount) else { return nil }
        let start = index * WireLimits.chunkBytes
        return start..<min(start + WireLimits.chunkBytes, byteCount)
    }
}

/// Asks for one chunk of a blob that a task named.
public struct FetchChunk: Equatable, Sendable {
    public var session: UInt64
    public var digest: Digest
    public var index: UInt32

    public init(session: UInt64, digest: Digest, index: UInt32) {
        self.session = session
        self.digest = digest
        self.index = index
    }
}

/// One chunk of a blob.
public struct Chunk: Equatable, Sendable {
    /// Of the whole blob.
    public var digest: Digest
    public var index: UInt32
    public var count: UInt32
    public var bytes: [UInt8]

    public init(digest: Digest, index: UInt32, count: UInt32, bytes: [UInt8]) {
        self.digest = digest
        self.index = index
        self.count = count
        self.bytes = bytes
    }
}

public enum ContributionKind: UInt8, Sendable, CaseIterable {
    /// The factors that everyone starts from.
    case start = 1
    /// One round's training.
    case update = 2
}

/// One chunk of a contribution. Sending it again changes nothing.
public struct UploadChunk: Equatable, Sendable {
    public var session: UInt64
    public var kind: ContributionKind
    public var round: UInt32
    /// Of the whole contribution.
    public var digest: Digest
    public var index: UInt32
    public var count: UInt32
    /// Of the whole contribution.
    public var totalBytes: UInt64
    public var bytes: [UInt8]

    public init(
        session: UInt64, kind: ContributionKind, round: UInt32, digest: Digest, index: UInt32, count: UInt32,
        totalBytes: UInt64, bytes: [UInt8]
    ) {
        self.session = session
        self.kind = kind
        self.round = round
        self.digest = digest
        self.index = index
        self.count = count
        self.totalBytes = totalBytes
        self.bytes = bytes
    }
}

public struct ChunkReceived: Equatable, Sendable {
    public var digest: Digest
    public var index: UInt32

    public init(digest: Digest, index: UInt32) {
        self.digest = digest
        self.index = index
    }
}

/// What a client says of a round's training beside the update; nothing under differential privacy, which it would undo.
public struct TrainingReport: Equatable, Sendable {
    /// Mean nats per target token over the round's steps.
    public var trainLoss: Double
    public var targetTokens: UInt64
    public var trainSeconds: Float

    public init(trainLoss: Double, targetTokens: UInt64, trainSeconds: Float) {
        self.trainLoss = trainLoss
        self.targetTokens = targetTokens
        self.trainSeconds = trainSeconds
    }
}

/// Makes the uploaded chunks a contribution: answered only when it is stored durably.
public struct Commit: Equatable, Sendable {
    public var session: UInt64
    public var kind: ContributionKind
    public var round: UInt32
    public var attempt: UInt32
    public var digest: Digest
    public var totalBytes: UInt64
    /// Examples of the client's usable training set; nil where the plan keeps counts private.
    public var exampleCount: UInt64?
    public var training: TrainingReport?

    public init(
        session: UInt64, kind: ContributionKind, round: UInt32, attempt: UInt32, digest: Digest, totalBytes: UInt64,
        exampleCount: UInt64?, training: TrainingReport?
    ) {
        self.session = session
        self.kind = kind
        self.round = round
        self.attempt = attempt
        self.digest = digest
        self.totalBytes = totalBytes
        self.exampleCount = exampleCount
        self.training = training
    }
}

public struct Committed: Equatable, Sendable {
    public var status: ContributionStatus
    /// Chunks to send again before committing again, ascending; empty when the contribution is stored.
    public var missing: [UInt32]

    public init(status: ContributionStatus, missing: [UInt32] = []) {
        self.status = status
        self.missing = missing
    }
}

extension FetchChunk: WireFields {
    func write(to writer: inout ByteWriter) {
        writer.write(session)
        writer.write(digest)
        writer.write(index)
    }

    init(from reader: inout FieldReader) throws(WireError) {
        session = try reader.integer("session")
        digest = try reader.digest("digest")
        index = try reader.integer("index")
    }
}

extension Chunk: WireFields {
    func write(to writer: inout ByteWriter) {
        writer.write(digest)
        writer.write(index)
        writer.write(count)
        writer.write(counted: bytes)
    }

    init(from reader: inout FieldReader) throws(WireError) {
        digest = try reader.digest("digest")
        (index, count) = try Self.position(from: &reader)
        bytes = try reader.bytes("bytes", limit: WireLimits.chunkBytes)
        guard index == count - 1 || bytes.count == WireLimits.chunkBytes else {
            throw .malformed(field: "bytes", problem: "chunk \(index) of \(count) has \(bytes.count) bytes and is not the last")
        }
    }

    /// Index and count: at least one chunk, at most the limit, the index among them.
    fileprivate static func position(from reader: inout FieldReader) throws(WireError) -> (index: UInt32, count: UInt32) {
        let index = try reader.integer("index", UInt32.self)
        let count = try reader.integer("count", UInt32.self)
        guard count >= 1, count <= WireLimits.chunkCount else {
            throw .malformed(field: "count", problem: "\(count) chunks; it is 1 to \(WireLimits.chunkCount)")
        }
        guard index < count else { throw .malformed(field: "index", problem: "\(index) of \(count) chunks") }
        return (index, count)
    }
}

extension UploadChunk: WireFields {
    func write(to writer: inout ByteWriter) {
        writer.write(session)
        writer.write(kind.rawValue)
        writer.write(round)
        writer.write(digest)
        writer.write(index)
        writer.write(count)
        writer.write(totalBytes)
        writer.write(counted: bytes)
    }

    init(from reader: inout FieldReader) throws(WireError) {
        session = try reader.integer("session")
        kind = try reader.choice("kind")
        round = try reader.integer("round")
        digest = try reader.digest("digest")
        (index, count) = try Chunk.position(from: &reader)
        totalBytes = try reader.integer("totalBytes")
        guard totalBytes <= Chunking.largestByteCount, Chunking.count(ofByteCount: Int(totalBytes)) == Int(count) else {
            throw .malformed(field: "totalBytes", problem: "\(totalBytes) bytes do not make \(count) chunks")
        }
        bytes = try reader.bytes("bytes", limit: WireLimits.chunkBytes)
        guard bytes.count == Chunking.range(ofChunk: Int(index), byteCount: Int(totalBytes))?.count else {
            throw .malformed(
                field: "bytes", problem: "chunk \(index) of \(count), \(totalBytes) bytes in all, has \(bytes.count) bytes")
        }
    }
}

extension ChunkReceived: WireFields {
    func write(to writer: inout ByteWriter) {
        writer.write(digest)
        writer.write(index)
    }

    init(from reader: inout FieldReader) throws(WireError) {
        digest = try reader.digest("digest")
        index = try reader.integer("index")
    }
}

extension TrainingReport: WireFields {
    func write(to writer: inout ByteWriter) {
        writer.write(trainLoss)
        writer.write(targetTokens)
        writer.write(trainSeconds)
    }

    init(from reader: inout FieldReader) throws(WireError) {
        trainLoss = try reader.double("trainLoss")
        targetTokens = try reader.integer("targetTokens")
        trainSeconds = try reader.float("trainSeconds")
    }
}

extension Commit: WireFields {
    func write(to writer: inout ByteWriter) {
        writer.write(session)
        writer.write(kind.rawValue)
        writer.write(round)
        writer.write(attempt)
        writer.write(digest)
        writer.write(totalBytes)
        writer.write(exampleCount) { $0.write($1) }
        writer.write(training) { $1.write(to: &$0) }
    }

    init(from reader: inout FieldReader) throws(WireError) {
        session = try reader.integer("session")
        kind = try reader.choice("kind")
        round = try reader.integer("round")
        attempt = try reader.integer("attempt")
        digest = try reader.digest("digest")
        totalBytes = try reader.integer("totalBytes")
        guard totalBytes <= Chunking.largestByteCount else {
            throw .malformed(field: "totalBytes", problem: "\(totalBytes) bytes; the most is \(Chunking.largestByteCount)")
        }
        exampleCount = try reader.optional("exampleCount") { reader throws(WireError) in try reader.integer("exampleCount") }
        training = try reader.optional("training") { reader throws(WireError) in try TrainingReport(from: &reader) }
    }
}

extension Committed: WireFields {
    func write(to writer: inout ByteWriter) {
        writer.write(status.rawValue)
        writer.write(UInt32(missing.count))
        for index in missing { writer.write(index) }
    }

    init(from reader: inout FieldReader) throws(WireError) {
        status = try reader.choice("status")
        missing = try reader.list("missing", limit: WireLimits.chunkCount, elementBytes: 4) { reader throws(WireError) in
            try reader.integer("missing", UInt32.self)
        }
    }
}
