/// What a run leaves behind for people and other tools: `metrics.jsonl`, `run.json` and `adapter/` in PEFT's format.

import Adapters
import Checkpoints
import FoundationEssentials
import Plan
import Primitives

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
                .init("examples", .integer(member.exampleCount)),
            ])
        }
        let value = JSONValue.object(
            [
                .init("run", .string(stored.runID)), .init("version", .string(Version.current)),
                .init("base_model", .string(base)), .init("plan", plan), .init("finished", .boolean(stored.finished)),
                .init("rounds_done", .integer(stored.records.count)), .init("members", .array(members)),
                .init("initial_eval_loss", .optional(initial.loss)),
                .init("initial_eval_exact_match", .optional(initial.exactMatch)),
            ] + extra)
        try FileWriting.replace(path + "/run.json", with: value.pretty + "\n")
    }

    /// A round's line, as `metrics.jsonl` and `--json` show it.
    public static func line(_ record: RoundRecord, _ stored: StoredFederation) -> JSONValue {
        let evaluation = EvaluationSummary(stored.evaluations.filter { $0.round == record.round })
        var members: [JSONValue.Member] = [
            .init("round", .integer(record.round)),
            .init("participants", .array(record.participants.map(JSONValue.string))),
            .init("train_loss", .optional(record.trainLoss)), .init("eval_loss", .optional(evaluation.loss)),
            .init("eval_exact_match", .optional(evaluation.exactMatch)),
            .init("uplink_bytes", .integer(record.traffic.uplink)), .init("downlink_bytes", .integer(record.traffic.downlink)),
            .init("one_time_bytes", .integer(record.traffic.oneTime)),
            .init("control_bytes", .integer(record.traffic.control)), .init("seconds", .optional(record.seconds)),
            .init("strategy", .string(stored.plan.strategy.rawValue)), .init("attempts", .integer(record.attempts)),
        ]
        if let error = stored.adapters.first(where: { $0.round == record.round })?.truncationError {
            members.append(.init("truncation_error", .optional(error)))
        }
        return .object(members)
    }
}

/// Evaluations of one adapter by several clients: loss by target tokens, exact match by examples, in name order.
public struct EvaluationSummary: Equatable, Sendable {
    /// Mean nats per target token; nil if nobody evaluated.
    public let loss: Double?
    public let exactMatch: Double?

    public init(_ records: [EvaluationRecord]) {
        let records = records.sorted { $0.client < $1.client }
        let tokens = records.reduce(0) { $0 + $1.targetTokens }
        loss = tokens > 0 ? records.reduce(0) { $0 + $1.lossSum } / Double(tokens) : nil
        let matched = records.filter { $0.exactMatches != nil }
        let examples = matched.reduce(0) { $0 + $1.examples }
        exactMatch = examples > 0 ? Double(matched.reduce(0) { $0 + ($1.exactMatches ?? 0) }) / Double(examples) : nil
    }
}
