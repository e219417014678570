/// A run in one row: what it was, what it reached and what it sent.

import Primitives

public struct RunSummary: Sendable, Equatable {
    public let run: RecordedRun
    /// Of the last evaluated round, and that round.
    public let finalLoss: Double?
    public let finalLossRound: Int?
    /// A classifier's, of the same round.
    public let finalAccuracy: Double?
    public let finalMacroF1: Double?
    /// Mean over rounds, of all clients' contributions together.
    public let uplinkBytesPerRound: Double?
    /// Mean over contributions; nil where it is a secret who took part.
    public let uplinkBytesPerContribution: Double?
    /// Over the whole run.
    public let uplinkRatios: RecordedRun.Ratios
    public let downlinkRatios: RecordedRun.Ratios
    public let oneTimeBytes: Double?
    public let seconds: Double?

    public init(_ run: RecordedRun) {
        self.run = run
        let last = run.rounds.last { $0.evaluationLoss != nil }
        finalLoss = last?.evaluationLoss
        finalLossRound = last?.round
        finalAccuracy = last?.evaluationAccuracy
        finalMacroF1 = last?.evaluationMacroF1
        let uplink = Self.sum(run.rounds.map { $0.uplinkBytes.map(Double.init) })
        uplinkBytesPerRound = uplink.map { $0 / Double(run.rounds.count) }
        let contributions = run.rounds.reduce(0) { $0 + ($1.participants ?? 0) }
        uplinkBytesPerContribution =
            contributions > 0 && run.rounds.allSatisfy { $0.participants != nil }
            ? uplink.map { $0 / Double(contributions) } : nil
        uplinkRatios = .init(
            bfloat16: Self.ratio(run.rounds.map { ($0.uplinkRatios.bfloat16, $0.uplinkBytes) }),
            float32: Self.ratio(run.rounds.map { ($0.uplinkRatios.float32, $0.uplinkBytes) }))
        downlinkRatios = .init(
            bfloat16: Self.ratio(run.rounds.map { ($0.downlinkRatios.bfloat16, $0.downlinkBytes) }),
            float32: Self.ratio(run.rounds.map { ($0.downlinkRatios.float32, $0.downlinkBytes) }))
        oneTimeBytes = Self.sum(run.rounds.map { $0.oneTimeBytes.map(Double.init) })
        seconds = Self.sum(run.rounds.map(\.seconds))
    }

    /// Nil if a round does not tell.
    private static func sum(_ values: [Double?]) -> Double? {
        values.contains { $0 == nil } ? nil : values.reduce(0) { $0 + ($1 ?? 0) }
    }

    /// What the values would take over what they took, of the rounds that have both.
    private static func ratio(_ rounds: [(ratio: Double?, bytes: Int?)]) -> Double? {
        var (values, bytes) = (0.0, 0.0)
        for round in rounds {
            guard let ratio = round.ratio, let sent = round.bytes else { continue }
            values += ratio * Double(sent)
            bytes += Double(sent)
        }
        return bytes > 0 ? values / bytes : nil
    }

    /// The run among `others` that this one is measured against: the same plan but for codec, error feedback and what
    /// follows from them, sent as bfloat16.
    func reference(among others: [RunSummary]) -> RunSummary? {
        others.first { other in
            other.run.compress == "bf16" && !other.run.errorFeedback && other.run.strategy == run.strategy
                && other.run.seed == run.seed && other.run.privacy == run.privacy
                && other.run.rounds.count == run.rounds.count
        }
    }

    /// As `--json` shows it; null is what the run's folder does not tell.
    func json(reference: RunSummary?) -> JSONValue {
        let privacy = run.privacy
        return .object([
            .init("run", .string(run.label)), .init("strategy", .string(run.strategy)),
            .init("compress", .string(run.compress)), .init("error_feedback", .boolean(run.errorFeedback)),
            .init("dp", .string(privacy?.level ?? "none")), .init("epsilon", .optional(privacy?.epsilon)),
            .init("delta", .optional(privacy?.delta)),
            .init("guarantee", privacy?.guarantee.map(JSONValue.string) ?? .null),
            .init("seed", run.seed.map(JSONValue.integer) ?? .null),
            .init("rounds", .integer(run.rounds.count)), .init("finished", .boolean(run.isFinished)),
            .init("initial_eval_loss", .optional(run.initialLoss)), .init("eval_loss", .optional(finalLoss)),
            .init("eval_accuracy", .optional(finalAccuracy)), .init("eval_macro_f1", .optional(finalMacroF1)),
            .init("eval_loss_round", finalLossRound.map(JSONValue.integer) ?? .null),
            .init("eval_loss_of_bf16", .optional(Self.quotient(finalLoss, reference?.finalLoss))),
            .init("uplink_bytes_per_round", .optional(uplinkBytesPerRound)),
            .init("uplink_bytes_per_contribution", .optional(uplinkBytesPerContribution)),
            .init("fewer_uplink_bytes_than_bf16", .optional(fewerBytes(than: reference))),
            .init("uplink_ratio_bf16", .optional(uplinkRatios.bfloat16)),
            .init("uplink_ratio_f32", .optional(uplinkRatios.float32)),
            .init("downlink_ratio_bf16", .optional(downlinkRatios.bfloat16)),
            .init("downlink_ratio_f32", .optional(downlinkRatios.float32)),
            .init("one_time_bytes", .optional(oneTimeBytes)), .init("seconds", .optional(seconds)),
        ])
    }

    /// The reference's contribution bytes a round over this run's.
    func fewerBytes(than reference: RunSummary?) -> Double? {
        Self.quotient(reference?.uplinkBytesPerRound, uplinkBytesPerRound)
    }

    static func quotient(_ a: Double?, _ b: Double?) -> Double? {
        guard let a, let b, b != 0 else { return nil }
        return a / b
    }
}

extension Sequence<RunSummary> {
    /// All rows as `--json` shows them.
    public func json() -> JSONValue {
        let all = Array(self)
        return .array(all.map { $0.json(reference: $0.reference(among: all)) })
    }
}
