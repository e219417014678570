/// How a client enters and leaves a run: inquire, hello, welcome, leave, and the refusal that can answer anything.

import Primitives

/// The first request of a client: what is planned here? It says nothing of the client, so that one whom the plan does not
/// suit has told nothing.
public struct Inquire: Equatable, Sendable {
    /// Of the program, for logs; compatibility is decided by the frame's protocol version alone.
    public var softwareVersion: String

    public init(softwareVersion: String) { self.softwareVersion = softwareVersion }
}

/// The coordinator's answer to inquire.
public struct Announcement: Equatable, Sendable {
    public var softwareVersion: String
    public var runID: String
    /// `FederationPlan` as JSON.
    public var plan: [UInt8]

    public init(softwareVersion: String, runID: String, plan: [UInt8]) {
        self.softwareVersion = softwareVersion
        self.runID = runID
        self.plan = plan
    }
}

/// A client joins: who it is, what it holds, what it can do.
public struct Hello: Equatable, Sendable {
    /// Of the program, for logs; compatibility is decided by the frame's protocol version alone.
    public var softwareVersion: String
    public var name: String
    /// 32 random bytes that the client made when it first joined; the coordinator keeps only their hash.
    public var secret: [UInt8]
    public var baseDigest: Digest
    public var tokenizerDigest: Digest
    /// The largest rank that the client can hold, if it has a limit.
    public var maximumRank: UInt32?
    /// Usable training examples: fixed for the run, and the client's weight under `samples`. Nil where the plan keeps counts
    /// private.
    public var exampleCount: UInt64?
    public var hasEvaluationData: Bool
    /// Whether the client holds the unquantized weights that a start may need.
    public var hasUnquantizedModel: Bool
    /// Drawn anew by every process, so that logs can tell a restart from a repeated hello.
    public var sessionNonce: UInt64
    /// Of the client's arithmetic, such as "avx512-bf16": results agree bit for bit within one path only.
    public var kernelPath: String

    public init(
        softwareVersion: String, name: String, secret: [UInt8], baseDigest: Digest, tokenizerDigest: Digest,
        maximumRank: UInt32?, exampleCount: UInt64?, hasEvaluationData: Bool,
        hasUnquantizedModel: Bool = false, sessionNonce: UInt64, kernelPath: String
    ) {
        self.softwareVersion = softwareVersion
        self.name = name
        self.secret = secret
        self.baseDigest = baseDigest
        self.tokenizerDigest = tokenizerDigest
        self.maximumRank = maximumRank
        self.exampleCount = exampleCount
        self.hasEvaluationData = hasEvaluationData
        self.hasUnquantizedModel = hasUnquantizedModel
        self.sessionNonce = sessionNonce
        self.kernelPath = kernelPath
    }
}

/// The coordinator's answer to hello.
public struct Welcome: Equatable, Sendable {
    public var softwareVersion: String
    public var runID: String
    /// Goes into every later request; a newer hello of the same client ends it.
    public var session: UInt64
    /// That this client trains.
    public var rank: UInt32
    /// Seconds between heartbeats while the client is busy.
    public var heartbeatSeconds: Float

    public init(
        softwareVersion: String, runID: String, session: UInt64, rank: UInt32, heartbeatSeconds: Float
    ) {
        self.softwareVersion = softwareVersion
        self.runID = runID
        self.session = session
        self.rank = rank
        self.heartbeatSeconds = heartbeatSeconds
    }
}

/// The client goes away on purpose; the coordinator need not wait for its heartbeat to stop.
public struct Leave: Equatable, Sendable {
    public var session: UInt64
    public var reason: String

    public init(session: UInt64, reason: String) {
        self.session = session
        self.reason = reason
    }
}

public enum RefusalCode: UInt8, Sendable, CaseIterable {
    case protocolVersion = 1
    case wrongBase = 2
    case wrongTokenizer = 3
    case nameTaken = 4
    case unknownSession = 5
    case rankTooSmall = 6
    case runFinished = 7
    case tooLarge = 8
    case badMessage = 9
    case unknownBlob = 10
    case notSelected = 11
    case noExamples = 12
    case busy = 13
}

/// The coordinator will not do what was asked.
public struct Refusal: Equatable, Sendable {
    public var code: RefusalCode
    /// One sentence for the person at the client: what is wrong and what to do.
    public var message: String
    /// When to ask again; nil means never: the same request can only be refused again.
    public var retryAfterMilliseconds: UInt32?

    public init(code: RefusalCode, message: String, retryAfterMilliseconds: UInt32? = nil) {
        self.code = code
        self.message = message
        self.retryAfterMilliseconds = retryAfterMilliseconds
    }
}

extension Inquire: WireFields {
    func write(to writer: inout ByteWriter) { writer.write(softwareVersion) }

    init(from reader: inout FieldReader) throws(WireError) {
        softwareVersion = try reader.string("softwareVersion", limit: WireLimits.wordBytes)
    }
}

extension Announcement: WireFields {
    func write(to writer: inout ByteWriter) {
        writer.write(softwareVersion)
        writer.write(runID)
        writer.write(counted: plan)
    }

    init(from reader: inout FieldReader) throws(WireError) {
        softwareVersion = try reader.string("softwareVersion", limit: WireLimits.wordBytes)
        runID = try reader.string("runID", limit: WireLimits.wordBytes)
        plan = try reader.bytes("plan", limit: WireLimits.controlBodyBytes)
    }
}

extension Hello: WireFields {
    func write(to writer: inout ByteWriter) {
        precondition(secret.count == WireLimits.secretBytes, "a secret has \(secret.count) bytes")
        writer.write(softwareVersion)
        writer.write(name)
        writer.write(raw: secret)
        writer.write(baseDigest)
        writer.write(tokenizerDigest)
        writer.write(maximumRank) { $0.write($1) }
        writer.write(exampleCount) { $0.write($1) }
        writer.write(UInt8((hasEvaluationData ? 1 : 0) | (hasUnquantizedModel ? 2 : 0)))
        writer.write(sessionNonce)
        writer.write(kernelPath)
    }

    init(from reader: inout FieldReader) throws(WireError) {
        softwareVersion = try reader.string("softwareVersion", limit: WireLimits.wordBytes)
        name = try reader.string("name", limit: WireLimits.nameBytes)
        if let problem = WireLimits.problem(inClientName: name) { throw .malformed(field: "name", problem: problem) }
        secret = try reader.bytes("secret", count: WireLimits.secretBytes)
        baseDigest = try reader.digest("baseDigest")
        tokenizerDigest = try reader.digest("tokenizerDigest")
        maximumRank = try reader.optional("maximumRank") { reader throws(WireError) in try reader.integer("maximumRank") }
        exampleCount = try reader.optional("exampleCount") { reader throws(WireError) in try reader.integer("exampleCount") }
        let abilities: UInt8 = try reader.integer("abilities")
        guard abilities <= 3 else { throw .malformed(field: "abilities", problem: "it is \(abilities), and the most is 3") }
        hasEvaluationData = abilities & 1 != 0
        hasUnquantizedModel = abilities & 2 != 0
        sessionNonce = try reader.integer("sessionNonce")
        kernelPath = try reader.string("kernelPath", limit: WireLimits.wordBytes)
    }
}

extension Welcome: WireFields {
    func write(to writer: inout ByteWriter) {
        writer.write(softwareVersion)
        writer.write(runID)
        writer.write(session)
        writer.write(rank)
        writer.write(heartbeatSeconds)
    }

    init(from reader: inout FieldReader) throws(WireError) {
        softwareVersion = try reader.string("softwareVersion", limit: WireLimits.wordBytes)
        runID = try reader.string("runID", limit: WireLimits.wordBytes)
        session = try reader.integer("session")
        rank = try reader.integer("rank")
        heartbeatSeconds = try reader.float("heartbeatSeconds")
        guard heartbeatSeconds > 0 else {
            throw .malformed(field: "heartbeatSeconds", problem: "\(heartbeatSeconds) is not a positive time")
        }
    }
}

extension Leave: WireFields {
    func write(to writer: inout ByteWriter) {
        writer.write(session)
        writer.write(sentence: reason)
    }

    init(from reader: inout FieldReader) throws(WireError) {
        session = try reader.integer("session")
        reason = try reader.string("reason", limit: WireLimits.sentenceBytes)
    }
}

extension Refusal: WireFields {
    func write(to writer: inout ByteWriter) {
        writer.write(code.rawValue)
        writer.write(sentence: message)
        writer.write(retryAfterMilliseconds) { $0.write($1) }
    }

    init(from reader: inout FieldReader) throws(WireError) {
        code = try reader.choice("code")
        message = try reader.string("message", limit: WireLimits.sentenceBytes)
        retryAfterMilliseconds = try reader.optional("retryAfterMilliseconds") { reader throws(WireError) in
            try reader.integer("retryAfterMilliseconds")
        }
    }
}
