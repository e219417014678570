/// What a client tells while it works: its evaluation's result, and its heartbeat.

import Primitives

/// How often a classifier told one label.
public struct LabelTally: Equatable, Sendable {
    /// Examples of it that were told right, that it was told for, and that have it.
    public var correct: UInt32
    public var predicted: UInt32
    public var actual: UInt32

    public init(correct: UInt32, predicted: UInt32, actual: UInt32) {
        self.correct = correct
        self.predicted = predicted
        self.actual = actual
    }
}

/// The global adapter after `round`, on this client's evaluation data. Results never affect training.
public struct ReportEvaluation: Equatable, Sendable {
    public var session: UInt64
    public var round: UInt32
    /// Nats, over all target tokens.
    public var lossSum: Double
    public var targetTokens: UInt64
    public var examples: UInt64
    /// Of the examples; nil where the plan asks for none.
    public var exactMatches: UInt64?
    /// One for each label, in the plan's order; empty where texts are not classified.
    public var labelTallies: [LabelTally]

    public init(
        session: UInt64, round: UInt32, lossSum: Double, targetTokens: UInt64, examples: UInt64, exactMatches: UInt64?,
        labelTallies: [LabelTally] = []
    ) {
        self.session = session
        self.round = round
        self.lossSum = lossSum
        self.targetTokens = targetTokens
        self.examples = examples
        self.exactMatches = exactMatches
        self.labelTallies = labelTallies
    }
}

/// Tells "slow" from "dead": sent on the control connection while the client trains.
public struct Heartbeat: Equatable, Sendable {
    public var session: UInt64
    public var round: UInt32
    /// Steps of this round's training that are done.
    public var step: UInt32
    public var totalSteps: UInt32

    public init(session: UInt64, round: UInt32, step: UInt32, totalSteps: UInt32) {
        self.session = session
        self.round = round
        self.step = step
        self.totalSteps = totalSteps
    }
}

public struct HeartbeatReply: Equatable, Sendable {
    /// False: the round is over or the client was replaced; the work can be thrown away.
    public var keepGoing: Bool
    public var reason: String

    public init(keepGoing: Bool, reason: String) {
        self.keepGoing = keepGoing
        self.reason = reason
    }
}

extension ReportEvaluation: WireFields {
    func write(to writer: inout ByteWriter) {
        writer.write(session)
        writer.write(round)
        writer.write(lossSum)
        writer.write(targetTokens)
        writer.write(examples)
        writer.write(exactMatches) { $0.write($1) }
        writer.write(UInt32(labelTallies.count))
        for tally in labelTallies {
            writer.write(tally.correct)
            writer.write(tally.predicted)
            writer.write(tally.actual)
        }
    }

    init(from reader: inout FieldReader) throws(WireError) {
        session = try reader.integer("session")
        round = try reader.integer("round")
        lossSum = try reader.double("lossSum")
        targetTokens = try reader.integer("targetTokens")
        examples = try reader.integer("examples")
        exactMatches = try reader.optional("exactMatches") { reader throws(WireError) in try reader.integer("exactMatches") }
        if let exactMatches, exactMatches > examples {
            throw .malformed(field: "exactMatches", problem: "\(exactMatches) of \(examples) examples")
        }
        labelTallies = try reader.list("labelTallies", limit: WireLimits.labelCount, elementBytes: 12) {
            reader throws(WireError) in
            LabelTally(
                correct: try reader.integer("correct"), predicted: try reader.integer("predicted"),
                actual: try reader.integer("actual"))
        }
    }
}

extension Heartbeat: WireFields {
    func write(to writer: inout ByteWriter) {
        writer.write(session)
        writer.write(round)
        writer.write(step)
        writer.write(totalSteps)
    }

    init(from reader: inout FieldReader) throws(WireError) {
        session = try reader.integer("session")
        round = try reader.integer("round")
        step = try reader.integer("step")
        totalSteps = try reader.integer("totalSteps")
    }
}

extension HeartbeatReply: WireFields {
    func write(to writer: inout ByteWriter) {
        writer.write(keepGoing)
        writer.write(sentence: reason)
    }

    init(from reader: inout FieldReader) throws(WireError) {
        keepGoing = try reader.bool("keepGoing")
        reason = try reader.string("reason", limit: WireLimits.sentenceBytes)
    }
}
