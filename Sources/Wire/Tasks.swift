/// What a client asks to do next, and what it is told: poll, and the tasks that answer it.

import Primitives

/// A contribution as its client names it: the round it was for, and the digest of its bytes.
public struct ContributionKey: Hashable, Sendable {
    public var round: UInt32
    public var digest: Digest

    public init(round: UInt32, digest: Digest) {
        self.round = round
        self.digest = digest
    }
}

/// What became of a contribution.
public enum ContributionStatus: UInt8, Sendable, CaseIterable {
    /// The client named none.
    case none = 0
    /// Stored; its round is still open.
    case pending = 1
    /// Part of the global adapter.
    case counted = 2
    /// Its round closed without it: the client restores the residual from before it.
    case dropped = 3
}

/// Asks for something to do.
public struct Poll: Equatable, Sendable {
    public var session: UInt64
    public var lastContribution: ContributionKey?

    public init(session: UInt64, lastContribution: ContributionKey?) {
        self.session = session
        self.lastContribution = lastContribution
    }
}

public enum BlobKind: UInt8, Sendable, CaseIterable {
    /// The global trained state after a round.
    case state = 1
    /// Factors that never change in a run, such as Fed-SB's B and A.
    case frozen = 2
    /// One round's part of FLoRA's global correction, or all of it after a truncation.
    case segment = 3
}

/// Bytes to be fetched in chunks and kept by digest.
public struct BlobReference: Hashable, Sendable {
    /// SHA-256 of the encoded bytes.
    public var digest: Digest
    public var byteCount: UInt64
    public var kind: BlobKind
    public var rank: UInt32

    public init(digest: Digest, byteCount: UInt64, kind: BlobKind, rank: UInt32) {
        self.digest = digest
        self.byteCount = byteCount
        self.kind = kind
        self.rank = rank
    }

    static let encodedBytes = Digest.byteCount + 8 + 1 + 4
}

/// A short way to a state, for a client that holds the one before it: the encoded difference to add.
public struct StateDelta: Hashable, Codable, Sendable {
    /// Of the encoded state that it is added to.
    public var from: Digest
    /// SHA-256 of the encoded difference.
    public var digest: Digest
    public var byteCount: UInt64

    public init(from: Digest, digest: Digest, byteCount: UInt64) {
        self.from = from
        self.digest = digest
        self.byteCount = byteCount
    }
}

/// Make the factors that everyone starts from, and upload them as a contribution of kind `start`.
public struct StartTask: Equatable, Sendable {
    /// 0: before the first round.
    public var round: UInt32
    public var rank: UInt32

    public init(round: UInt32 = 0, rank: UInt32) {
        self.round = round
        self.rank = rank
    }
}

public struct TrainTask: Equatable, Sendable {
    public var round: UInt32
    public var attempt: UInt32
    /// Until the deadline, from when the reply was made.
    public var deadlineMilliseconds: UInt64
    public var blobs: [BlobReference]
    /// Of what the client derives from the run's seed (FFA-LoRA's A), to be checked before training.
    public var derivedDigest: Digest?
    /// Another way to the state among the blobs.
    public var delta: StateDelta?

    public init(
        round: UInt32, attempt: UInt32, deadlineMilliseconds: UInt64, blobs: [BlobReference], derivedDigest: Digest?,
        delta: StateDelta? = nil
    ) {
        self.round = round
        self.attempt = attempt
        self.deadlineMilliseconds = deadlineMilliseconds
        self.blobs = blobs
        self.derivedDigest = derivedDigest
        self.delta = delta
    }
}

/// Evaluate the global adapter after `round` on the client's evaluation data.
public struct EvaluateTask: Equatable, Sendable {
    public var round: UInt32
    public var blobs: [BlobReference]
    public var derivedDigest: Digest?
    public var delta: StateDelta?

    public init(round: UInt32, blobs: [BlobReference], derivedDigest: Digest?, delta: StateDelta? = nil) {
        self.round = round
        self.blobs = blobs
        self.derivedDigest = derivedDigest
        self.delta = delta
    }
}

public enum Task: Equatable, Sendable {
    case wait(milliseconds: UInt32, reason: String)
    case start(StartTask)
    case train(TrainTask)
    case evaluate(EvaluateTask)
    case finished(reason: String)
}

public struct TaskReply: Equatable, Sendable {
    /// Of the contribution that the poll named.
    public var lastContribution: ContributionStatus
    public var task: Task

    public init(lastContribution: ContributionStatus, task: Task) {
        self.lastContribution = lastContribution
        self.task = task
    }
}

extension ContributionKey: WireFields {
    func write(to writer: inout ByteWriter) {
        writer.write(round)
        writer.write(digest)
    }

    init(from reader: inout FieldReader) throws(WireError) {
        round = try reader.integer("round")
        digest = try reader.digest("digest")
    }
}

extension Poll: WireFields {
    func write(to writer: inout ByteWriter) {
        writer.write(session)
        writer.write(lastContribution) { $1.write(to: &$0) }
    }

    init(from reader: inout FieldReader) throws(WireError) {
        session = try reader.integer("session")
        lastContribution = try reader.optional("lastContribution") { reader throws(WireError) in
            try ContributionKey(from: &reader)
        }
    }
}

extension BlobReference: WireFields {
    func write(to writer: inout ByteWriter) {
        writer.write(digest)
        writer.write(byteCount)
        writer.write(kind.rawValue)
        writer.write(rank)
    }

    init(from reader: inout FieldReader) throws(WireError) {
        digest = try reader.digest("blob.digest")
        byteCount = try reader.integer("blob.byteCount")
        guard byteCount <= Chunking.largestByteCount else {
            throw .malformed(field: "blob.byteCount", problem: "\(byteCount) bytes; the most is \(Chunking.largestByteCount)")
        }
        kind = try reader.choice("blob.kind")
        rank = try reader.integer("blob.rank")
    }

    static func writeList(_ blobs: [BlobReference], to writer: inout ByteWriter) {
        writer.write(UInt32(blobs.count))
        for blob in blobs { blob.write(to: &writer) }
    }

    static func readList(from reader: inout FieldReader) throws(WireError) -> [BlobReference] {
        try reader.list("blobs", limit: WireLimits.blobCount, elementBytes: encodedBytes) { reader throws(WireError) in
            try BlobReference(from: &reader)
        }
    }
}

extension StateDelta: WireFields {
    func write(to writer: inout ByteWriter) {
        writer.write(from)
        writer.write(digest)
        writer.write(byteCount)
    }

    init(from reader: inout FieldReader) throws(WireError) {
        from = try reader.digest("delta.from")
        digest = try reader.digest("delta.digest")
        byteCount = try reader.integer("delta.byteCount")
        guard byteCount <= Chunking.largestByteCount else {
            throw .malformed(field: "delta.byteCount", problem: "\(byteCount) bytes; the most is \(Chunking.largestByteCount)")
        }
    }
}

extension StartTask: WireFields {
    func write(to writer: inout ByteWriter) {
        writer.write(round)
        writer.write(rank)
    }

    init(from reader: inout FieldReader) throws(WireError) {
        round = try reader.integer("round")
        rank = try reader.integer("rank")
    }
}

extension TrainTask: WireFields {
    func write(to writer: inout ByteWriter) {
        writer.write(round)
        writer.write(attempt)
        writer.write(deadlineMilliseconds)
        BlobReference.writeList(blobs, to: &writer)
        writer.write(derivedDigest) { $0.write($1) }
        writer.write(delta) { $1.write(to: &$0) }
    }

    init(from reader: inout FieldReader) throws(WireError) {
        round = try reader.integer("round")
        attempt = try reader.integer("attempt")
        deadlineMilliseconds = try reader.integer("deadlineMilliseconds")
        blobs = try BlobReference.readList(from: &reader)
        derivedDigest = try reader.optional("derivedDigest") { reader throws(WireError) in try reader.digest("derivedDigest") }
        delta = try reader.optional("delta") { reader throws(WireError) in try StateDelta(from: &reader) }
    }
}

extension EvaluateTask: WireFields {
    func write(to writer: inout ByteWriter) {
        writer.write(round)
        BlobReference.writeList(blobs, to: &writer)
        writer.write(derivedDigest) { $0.write($1) }
        writer.write(delta) { $1.write(to: &$0) }
    }

    init(from reader: inout FieldReader) throws(WireError) {
        round = try reader.integer("round")
        blobs = try BlobReference.readList(from: &reader)
        derivedDigest = try reader.optional("derivedDigest") { reader throws(WireError) in try reader.digest("derivedDigest") }
        delta = try reader.optional("delta") { reader throws(WireError) in try StateDelta(from: &reader) }
    }
}

extension TaskReply: WireFields {
    func write(to writer: inout ByteWriter) {
        writer.write(lastContribution.rawValue)
        switch task {
        case .wait(let milliseconds, let reason):
            writer.write(UInt8(1))
            writer.write(milliseconds)
            writer.write(sentence: reason)
        case .start(let task):
            writer.write(UInt8(2))
            task.write(to: &writer)
        case .train(let task):
            writer.write(UInt8(3))
            task.write(to: &writer)
        case .evaluate(let task):
            writer.write(UInt8(4))
            task.write(to: &writer)
        case .finished(let reason):
            writer.write(UInt8(5))
            writer.write(sentence: reason)
        }
    }

    init(from reader: inout FieldReader) throws(WireError) {
        lastContribution = try reader.choice("lastContribution")
        let choice = try reader.integer("task", UInt8.self)
        switch choice {
        case 1:
            let milliseconds = try reader.integer("milliseconds", UInt32.self)
            task = .wait(
                milliseconds: milliseconds, reason: try reader.string("reason", limit: WireLimits.sentenceBytes))
        case 2: task = .start(try StartTask(from: &reader))
        case 3: task = .train(try TrainTask(from: &reader))
        case 4: task = .evaluate(try EvaluateTask(from: &reader))
        case 5: task = .finished(reason: try reader.string("reason", limit: WireLimits.sentenceBytes))
        default: throw .malformed(field: "task", problem: "there is no choice \(choice)")
        }
    }
}
