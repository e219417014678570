/// What a client knows of its part in a run: its one contribution on the way or answered, and what error feedback carries.
///
/// A value that is kept as one, so that a kill at any moment leaves the record from before or from after, and a remainder is
/// neither lost nor added twice. The remainder that is in force follows from what became of the contribution: the one after
/// it if it counted, the one before it if it was dropped.

import Primitives
import Wire

/// A trained contribution.
public struct KeptContribution: Codable, Equatable, Sendable {
    public var isStart: Bool
    public var round: Int
    public var attempt: Int
    /// Of the encoded bytes, which storage holds until they are acknowledged.
    public var digest: Digest
    /// Nil where the plan keeps counts private.
    public var exampleCount: Int?
    /// Mean nats per target token, their number and the time; nil under differential privacy.
    public var trainLoss: Double?
    public var targetTokens: Int?
    public var trainSeconds: Double?
    /// Whether the coordinator has it.
    public var isAcknowledged = false

    var kind: ContributionKind { isStart ? .start : .update }

    var training: TrainingReport? {
        guard let trainLoss, let targetTokens, let trainSeconds else { return nil }
        return TrainingReport(trainLoss: trainLoss, targetTokens: UInt64(targetTokens), trainSeconds: Float(trainSeconds))
    }
}

/// What an encoding left out, to be added to the next update.
public struct Residual: Codable, Equatable, Sendable {
    /// Of the values, encoded as `f32`.
    public var digest: Digest
    /// The round of the contribution that left it.
    public var round: Int
    /// Of the frozen factors and the layout that it belongs to: on others it means nothing.
    public var context: Digest
}

public struct ClientRecord: Codable, Equatable, Sendable {
    public let run: String
    public private(set) var contribution: KeptContribution?
    /// In force unless the contribution counted.
    public private(set) var before: Residual?
    /// In force once the contribution counted.
    public private(set) var after: Residual?

    public init(run: String) { self.run = run }

    /// The contribution that is still to be sent or answered.
    public var pending: KeptContribution? {
        guard let contribution, !contribution.isAcknowledged else { return nil }
        return contribution
    }

    /// The contribution that the coordinator has, for it to say what became of it.
    public var answered: ContributionKey? {
        guard let contribution, contribution.isAcknowledged, !contribution.isStart else { return nil }
        return ContributionKey(round: UInt32(clamping: contribution.round), digest: contribution.digest)
    }

    /// The remainder in force, by what the coordinator says of the answered contribution.
    public func residual(given status: ContributionStatus) -> Residual? { status == .counted ? after : before }

    /// Digests of all bytes that this record needs.
    public var digests: Set<Digest> { Set([pending?.digest, before?.digest, after?.digest].compactMap { $0 }) }

    /// A new contribution: what it found in force, and what it leaves.
    public mutating func begin(_ contribution: KeptContribution, from inForce: Residual?, leaving residual: Residual?) {
        self.contribution = contribution
        before = inForce
        after = residual
    }

    public mutating func acknowledge() { contribution?.isAcknowledged = true }

    /// The contribution on the way is not wanted: it is as if it had not been made.
    public mutating func drop() {
        contribution = nil
        after = nil
    }
}
