/// What happens in a run, as lines for people and objects for programs.

import CoordinatorCore
import Plan
import Primitives
import Programs

/// One thing that happened.
struct RunEvent {
    let text: String
    /// With `--json`, one line of standard output.
    let json: JSONValue

    init(_ name: String, _ text: String, _ members: [JSONValue.Member] = []) {
        self.text = text
        json = .object([.init("event", .string(name))] + members)
    }
}

extension RunEvent {
    /// "4 contributions, loss 2.1, epsilon 0.8 of 3 at delta 1e-06, ": what of it may be told.
    private static func outcome(_ record: RoundRecord, _ plan: FederationPlan) -> String {
        var parts: [String] = []
        if plan.privacy != .client { parts.append("\(record.participants.count) contributions") }
        if let loss = record.trainLoss { parts.append("loss \(Readable.decimal(loss, 4))") }
        if let epsilon = record.epsilon {
            let budget = plan.epsilon.map { " of \($0)" } ?? ""
            parts.append("epsilon \(Readable.decimal(epsilon, 3))\(budget) at delta \(plan.delta)")
        }
        // How much travelled, and how long it took, tells how many took part.
        if plan.privacy != .client {
            parts.append("up \(Readable.bytes(record.traffic.uplink)), down \(Readable.bytes(record.traffic.downlink))")
            parts.append(Readable.duration(seconds: record.seconds))
        }
        return parts.joined(separator: ", ")
    }

    /// What a stored change means to a person; nil where it means nothing.
    ///
    /// - Parameter federation: after the change
    init?(_ change: StoreChange, in federation: Federation) {
        switch change {
        case .member(let member):
            let plan = federation.plan
            let count = federation.members.count
            let wanted = count < plan.minimumClients ? " of \(plan.minimumClients)" : ""
            self.init(
                "joined",
                "\(member.name) joined: rank \(member.rank), \(member.exampleCount.map { "\($0) examples" } ?? "examples not told")\(member.hasEvaluationData ? ", evaluates" : "") (\(count)\(wanted) client\(count == 1 && wanted.isEmpty ? "" : "s"))",
                [
                    .init("client", .string(member.name)), .init("rank", .integer(member.rank)),
                    .init("examples", member.exampleCount.map(JSONValue.integer) ?? .null),
                    .init("evaluates", .boolean(member.hasEvaluationData)),
                ])
        case .forget(let name):
            self.init("forgotten", "\(name) was forgotten: the name can be taken anew", [.init("client", .string(name))])
        case .attempt(let attempt):
            let again = attempt.attempt > 1 ? ", attempt \(attempt.attempt)" : ""
            // Whom a private round drew is told to nobody.
            let isSecret = federation.plan.privacy == .client
            let selected = isSecret ? "clients drawn" : attempt.selected.joined(separator: ", ")
            self.init(
                "round", "round \(attempt.round) of \(federation.plan.rounds)\(again): \(selected)",
                [
                    .init("round", .integer(attempt.round)), .init("attempt", .integer(attempt.attempt)),
                    .init("selected", isSecret ? .null : .array(attempt.selected.map(JSONValue.string))),
                ])
        case .contribution(let record, let bytes):
            guard federation.plan.privacy != .client else { return nil }
            let missing = federation.missing
            self.init(
                "contribution",
                "round \(record.round): \(record.client) contributed \(Readable.bytes(bytes.count))\(record.trainLoss.map { ", loss \(Readable.decimal($0, 4))" } ?? "")\(record.trainSeconds.map { ", \(Readable.duration(seconds: $0))" } ?? "")"
                    + (missing.isEmpty ? "" : "; waiting for \(missing.joined(separator: ", "))"),
                [
                    .init("round", .integer(record.round)), .init("client", .string(record.client)),
                    .init("bytes", .integer(bytes.count)), .init("train_loss", .optional(record.trainLoss)),
                    .init("train_seconds", .optional(record.trainSeconds)),
                    .init("missing", .array(missing.map(JSONValue.string))),
                ])
        case .closeRound(let record):
            let line = RunFolder.line(record, federation.summary)
            self.init(
                "closed",
                "round \(record.round) closed: \(Self.outcome(record, federation.plan))",
                line.members ?? [])
        case .evaluation(let record):
            let loss = record.lossSum / Double(max(1, record.targetTokens))
            let matches = record.exactMatches.map { ", exact match \($0) of \(record.examples)" } ?? ""
            let tokens = record.labelCounts == nil ? "\(record.targetTokens) tokens" : "\(record.examples) examples"
            let accuracy =
                record.labelCounts?.accuracy.map { ", accuracy \(Readable.decimal($0 * 100, 2)) %" } ?? ""
            self.init(
                "evaluation",
                "after round \(record.round): \(record.client) evaluated loss \(Readable.decimal(loss, 4)) on \(tokens)\(matches)\(accuracy)",
                [
                    .init("round", .integer(record.round)), .init("client", .string(record.client)),
                    .init("loss", .optional(loss)), .init("target_tokens", .integer(record.targetTokens)),
                    .init("examples", .integer(record.examples)),
                    .init("exact_matches", record.exactMatches.map(JSONValue.integer) ?? .null),
                    .init("accuracy", .optional(record.labelCounts?.accuracy)),
                    .init("macro_f1", .optional(record.labelCounts?.macroF1)),
                ])
        case .finished:
            self.init("finished", federation.endReason)
        case .run, .chunk, .discardChunks, .blob, .discardBlob, .adapter, .updateRecord, .traffic:
            return nil
        }
    }

    /// That an open round goes on in a new process; nil if none is open.
    init?(resuming federation: Federation) {
        guard let attempt = federation.attempt else { return nil }
        let isSecret = federation.plan.privacy == .client
        let stored = federation.contributions.keys.sorted()
        let what =
            isSecret
            ? "what came for it is stored" : "\(stored.count) of \(attempt.selected.count) contributions are stored"
        self.init(
            "resumed", "round \(attempt.round) goes on: \(what)",
            [
                .init("round", .integer(attempt.round)), .init("attempt", .integer(attempt.attempt)),
                .init("contributions", isSecret ? .null : .array(stored.map(JSONValue.string))),
                .init("missing", isSecret ? .null : .array(federation.missing.map(JSONValue.string))),
            ])
    }

    /// What the run waits for, or nil if it does not wait or its waiting was said otherwise.
    init?(waitingIn federation: Federation, at now: Duration) {
        let reason: String
        switch federation.phase {
        case .waiting(let what) where !what.isEmpty: reason = what
        case .waiting, .finished: return nil
        case .starting(let client, _): reason = "\(client), which computes the start"
        case .round(let deadline):
            let left = (deadline - now) / .seconds(1)
            let missing = federation.plan.privacy == .client ? "drawn clients" : federation.missing.joined(separator: ", ")
            reason =
                left > 0
                ? "\(missing) in round \(federation.currentRound) (\(Readable.duration(seconds: left)) to the deadline)"
                : federation.plan.privacy == .client
                    ? "\(missing) in round \(federation.currentRound): past the deadline"
                    : "\(missing) in round \(federation.currentRound): past the deadline with \(federation.contributions.count) of the \(federation.quorum) contributions that close it"
        case .finalEvaluation:
            let done = federation.evaluations[federation.lastRound] ?? [:]
            let missing = federation.members.values.filter { $0.hasEvaluationData && done[$0.name] == nil }.map(\.name).sorted()
            guard !missing.isEmpty else { return nil }
            reason = "the last evaluation of \(missing.joined(separator: ", "))"
        }
        self.init("waiting", "waiting for \(reason)", [.init("reason", .string(reason))])
    }
}
