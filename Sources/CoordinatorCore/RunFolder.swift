/// What a run leaves behind for people and other tools: `metrics.jsonl`, `run.json` and `adapter/` in PEFT's format.

import Adapters
import Checkpoints
import FoundationEssentials
import Plan
import Primitives
import UpdateCodec

public struct RunFolder: Sendable {
    public let path: String

    public init(path: String) { self.path = path }

    /// Creates the folder.
    public func create() throws(Failure) {
        do {
            try FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: true)
        } catch {
            throw Failure(
                .cannotCreate,
                "the output folder \(path) cannot be created: check the permissions of the folder above it, or choose another --output"
            )
        }
    }

    /// One line a round; every number is of the global adapter after that round.
    public func writeMetrics(_ stored: StoredFederation) throws(Failure) {
        let lines = stored.records.map { Self.line($0, stored).compact + "\n" }
        try FileWriting.replace(path + "/metrics.jsonl", with: lines.joined())
    }

    /// The whole effective plan, versions, digests and seed.
    public func writeRun(_ stored: StoredFederation, base: String, extra: [JSONValue.Member] = []) throws(Failure) {
        let plan = (try? JSONValue(parsing: PlanCoding.encode(stored.plan))) ?? .null
        let initial = EvaluationSummary(stored.evaluations.filter { $0.round == 0 })
        let members = stored.members.map { member in
            JSONValue.object([
                .init("name", .string(member.name)), .init("rank", .integer(member.rank)),
                .init("examples", member.exampleCount.map(JSONValue.integer) ?? .null),
            ])
        }
        let value = JSONValue.object(
            [
                .init("run", .string(stored.runID)), .init("version", .string(Version.current)),
                .init("base_model", .string(base)), .init("plan", plan), .init("finished", .boolean(stored.finished)),
                .init("rounds_done", .integer(stored.records.count)), .init("members", .array(members)),
                .init("privacy", Self.privacy(stored)),
                .init("initial_eval_loss", .optional(initial.loss)),
                .init("initial_eval_exact_match", .optional(initial.exactMatch)),
                .init("initial_eval_accuracy", .optional(initial.accuracy)),
                .init("initial_eval_macro_f1", .optional(initial.macroF1)),
            ] + extra)
        try FileWriting.replace(path + "/run.json", with: value.pretty + "\n")
    }

    /// What differential privacy the run gives, and by whom it is guaranteed; null without any.
    private static func privacy(_ stored: StoredFederation) -> JSONValue {
        let plan = stored.plan
        guard plan.privacy != .none else { return .null }
        var members: [JSONValue.Member] = [
            .init("level", .string(plan.privacy.rawValue)), .init("epsilon_target", .optional(plan.epsilon)),
            .init("delta", .optional(plan.delta)), .init("rounds_used", .integer(stored.records.count)),
        ]
        if plan.privacy == .client {
            members.append(.init("epsilon_spent", .optional(stored.records.last?.epsilon ?? 0)))
        }
        members.append(
            .init(
                "guarantee",
                .string(
                    stored.noise?.isSeeded == true
                        ? unsafeNotice
                        : plan.privacy == .client
                            ? "by this coordinator, for each client: added or removed"
                            : "by each client's own ledger, for each of its examples, whose number is taken as known")))
        return .object(members)
    }

    /// Said wherever results appear that were made with seeded noise.
    public static let unsafeNotice = "none: the noise follows from --unsafe-dp-seed and can be computed by anybody"

    /// Bytes that the values would take in an encoding of so many bytes each, over the bytes sent; nil where nothing was.
    private static func ratio(_ values: Int, _ bytesEach: Int, _ bytes: Int) -> JSONValue {
        values > 0 && bytes > 0 ? .optional(Double(values * bytesEach) / Double(bytes)) : .null
    }

    /// A round's line, as `metrics.jsonl` and `--json` show it.
    public static func line(_ record: RoundRecord, _ stored: StoredFederation) -> JSONValue {
        let evaluation = EvaluationSummary(stored.evaluations.filter { $0.round == record.round })
        let plan = stored.plan
        let traffic = record.traffic
        // Under client-level privacy who was drawn is part of the secret, and so is what tells how many: the bytes that
        // travelled, which also depend on the updates as they were before the noise, and the time that it took.
        let isSecret = plan.privacy == .client
        let participants = isSecret ? JSONValue.null : .array(record.participants.map(JSONValue.string))
        func bytes(_ count: Int) -> JSONValue { isSecret ? .null : .integer(count) }
        func ratio(_ values: Int, _ bytesEach: Int, _ bytes: Int) -> JSONValue {
            isSecret ? .null : Self.ratio(values, bytesEach, bytes)
        }
        var members: [JSONValue.Member] = [
            .init("round", .integer(record.round)), .init("participants", participants),
            .init("train_loss", .optional(record.trainLoss)), .init("eval_loss", .optional(evaluation.loss)),
            .init("eval_exact_match", .optional(evaluation.exactMatch)),
            .init("eval_accuracy", .optional(evaluation.accuracy)), .init("eval_macro_f1", .optional(evaluation.macroF1)),
            .init("uplink_bytes", bytes(traffic.uplink)), .init("downlink_bytes", bytes(traffic.downlink)),
            .init("one_time_bytes", bytes(traffic.oneTime)), .init("control_bytes", bytes(traffic.control)),
            .init("uplink_ratio_bf16", ratio(traffic.uplinkValues, 2, traffic.uplink)),
            .init("uplink_ratio_f32", ratio(traffic.uplinkValues, 4, traffic.uplink)),
            .init("downlink_ratio_bf16", ratio(traffic.downlinkValues, 2, traffic.downlink)),
            .init("downlink_ratio_f32", ratio(traffic.downlinkValues, 4, traffic.downlink)),
            .init("seconds", isSecret ? .null : .optional(record.seconds)), .init("strategy", .string(plan.strategy.rawValue)),
            .init("compress", .string(plan.compress.description)), .init("attempts", .integer(record.attempts)),
        ]
        if let epsilon = record.epsilon {
            members += [
                .init("epsilon", .optional(epsilon)), .init("delta", .optional(plan.delta)),
                .init("clip", .optional(record.clip)),
            ]
        }
        if stored.noise?.isSeeded == true { members.append(.init("privacy_guarantee", .string(unsafeNotice))) }
        if let error = stored.adapters.first(where: { $0.round == record.round })?.truncationError {
            members.append(.init("truncation_error", .optional(error)))
        }
        return .object(members)
    }
}

/// Evaluations of one adapter by several clients: loss by target tokens, exact match and accuracy by examples, macro-F1 from the
/// sums of counts, in name order.
public struct EvaluationSummary: Equatable, Sendable {
    /// Mean nats per target token, of a classifier per example; nil if nobody evaluated.
    public let loss: Double?
    public let exactMatch: Double?
    /// Nil where texts are not classified.
    public let accuracy: Double?
    public let macroF1: Double?

    public init(_ records: [EvaluationRecord]) {
        let records = records.sorted { $0.client < $1.client }
        let tokens = records.reduce(0) { $0 + $1.targetTokens }
        loss = tokens > 0 ? records.reduce(0) { $0 + $1.lossSum } / Double(tokens) : nil
        let matched = records.filter { $0.exactMatches != nil }
        let examples = matched.reduce(0) { $0 + $1.examples }
        let counts = records.compactMap(\.labelCounts)
        let all = counts.first.map { first in
            counts.dropFirst().filter { $0.labelCount == first.labelCount }.reduce(first, +)
        }
        accuracy = all?.accuracy
        macroF1 = all?.macroF1
        exactMatch = examples > 0 ? Double(matched.reduce(0) { $0 + ($1.exactMatches ?? 0) }) / Double(examples) : nil
    }
}
