/// What a client that asks is told to do.

import Plan
import Primitives
import Wire

extension Federation {
    mutating func nextTask(for name: String, _ poll: Poll, at now: Duration) -> Decision {
        let changes = advance(at: now)
        let status = poll.lastContribution.map { self.status(of: $0, from: name) } ?? .none
        let task = status == .pending ? wait("the round's other contributions") : task(for: name)
        var decision = Decision(.task(TaskReply(lastContribution: status, task: task)))
        decision.changes = changes
        switch task {
        case .train, .evaluate: decision.replyTraffic = .downlink
        case .finished: toldFinished.insert(name)
        default: break
        }
        return decision
    }

    /// Whether a contribution was counted, is pending, or was dropped.
    func status(of key: ContributionKey, from name: String) -> ContributionStatus {
        if let record = contributions[name], record.digest == key.digest, record.round == Int(key.round) { return .pending }
        if let record = lastClosed[name], record.digest == key.digest, record.round == Int(key.round) {
            return record.counted == true ? .counted : .dropped
        }
        let counted = records.first { $0.round == Int(key.round) }?.participants.contains(name) ?? false
        return counted && lastClosed[name]?.round != Int(key.round) ? .counted : .dropped
    }

    private func task(for name: String) -> Task {
        switch phase {
        case .waiting(let reason):
            return evaluation(for: name) ?? wait(reason)
        case .starting(let starter, _):
            return starter == name
                ? .start(StartTask(round: 0, rank: UInt32(plan.ranks[0])))
                : wait("\(starter), which computes the start")
        case .round(let deadline):
            if let evaluation = evaluation(for: name) { return evaluation }
            guard let attempt, attempt.selected.contains(name), contributions[name] == nil else {
                return wait("round \(currentRound), in which this client does not train or is done")
            }
            let left = max(deadline - (lastSeen[name] ?? deadline), .zero)
            return .train(
                TrainTask(
                    round: UInt32(attempt.round), attempt: UInt32(attempt.attempt),
                    deadlineMilliseconds: UInt64(left / .milliseconds(1)), blobs: adapter?.blobs.compactMap(\.reference) ?? [],
                    derivedDigest: derivedDigest, delta: adapter?.delta))
        case .finalEvaluation:
            return evaluation(for: name) ?? wait("the evaluation of the last round")
        case .finished:
            return .finished(reason: endReason)
        }
    }

    /// The evaluation of the current global adapter, if this client has data for it and has not done it.
    private func evaluation(for name: String) -> Task? {
        guard let adapter, members[name]?.hasEvaluationData == true, evaluations[adapter.round]?[name] == nil else {
            return nil
        }
        return .evaluate(
            EvaluateTask(
                round: UInt32(adapter.round), blobs: adapter.blobs.compactMap(\.reference), derivedDigest: derivedDigest,
                delta: adapter.delta))
    }

    /// Why no further round begins.
    public var endReason: String {
        guard lastRound < plan.rounds, let epsilon = plan.epsilon else { return "all \(plan.rounds) rounds are done" }
        let next = plan.clientEpsilon(afterRounds: lastRound + 1).map { " (it would be \(($0 * 1000).rounded() / 1000))" } ?? ""
        return
            "round \(lastRound + 1) of \(plan.rounds) is refused: with it the run would exceed its privacy budget of epsilon \(epsilon) at delta \(plan.delta)\(next)"
    }

    private func wait(_ reason: String) -> Task { .wait(milliseconds: 500, reason: "waiting for \(reason)") }

    mutating func receiveEvaluation(from name: String, _ report: ReportEvaluation, at now: Duration) -> Decision {
        guard let adapter, Int(report.round) == adapter.round, members[name]?.hasEvaluationData == true, plan.allowsEvaluation
        else {
            // The round has moved on; late results are of no use and do no harm.
            return Decision(.acknowledged)
        }
        guard report.targetTokens > 0 else {
            return Self.refusal(.badMessage, "the evaluation of client \(name) has no target token")
        }
        guard report.targetTokens <= Self.largestCount, report.examples <= Self.largestCount,
            abs(report.lossSum) <= Self.largestLoss * Double(report.targetTokens),
            report.exactMatches.map({ $0 <= report.examples }) ?? true
        else {
            return Self.refusal(
                .badMessage,
                "client \(name) tells of a loss of \(report.lossSum) over \(report.targetTokens) tokens and \(report.examples) examples, which no evaluation gives"
            )
        }
        let (tokens, examples) = (Int(report.targetTokens), Int(report.examples))
        let counts = LabelCounts(report.labelTallies)
        guard
            plan.task == .causal
                ? report.labelTallies.isEmpty : counts?.labelCount == plan.labels.count && counts?.examples == examples
        else {
            return Self.refusal(
                .badMessage,
                "client \(name) tells of \(report.labelTallies.count) labels whose counts are not those of \(examples) examples of this run's \(plan.labels.count) labels"
            )
        }
        guard plan.task == .causal || (tokens == examples && report.exactMatches == nil) else {
            return Self.refusal(
                .badMessage,
                "client \(name) tells of \(tokens) targets and \(report.exactMatches ?? 0) exact matches of \(examples) texts, each of which has one label and no completion"
            )
        }
        let record = EvaluationRecord(
            round: adapter.round, client: name, lossSum: report.lossSum, targetTokens: tokens, examples: examples,
            exactMatches: report.exactMatches.flatMap(Int.init(exactly:)), labelCounts: plan.task == .causal ? nil : counts)
        var decision = Decision(.acknowledged)
        if evaluations[adapter.round]?[name] == nil {
            evaluations[adapter.round, default: [:]][name] = record
            decision.changes.append(.evaluation(record))
        }
        decision.changes += advance(at: now)
        return decision
    }

    func answer(_ heartbeat: Heartbeat, from name: String) -> Decision {
        let wanted: Bool
        switch phase {
        case .starting(let starter, _): wanted = starter == name
        case .round: wanted = Int(heartbeat.round) == currentRound && attempt?.selected.contains(name) == true
        default: wanted = false
        }
        return Decision(
            .heartbeatReply(
                HeartbeatReply(
                    keepGoing: wanted, reason: wanted ? "" : "round \(heartbeat.round) went on without this client")))
    }
}

extension LabelCounts {
    /// Nil if the numbers are not of one set of examples.
    fileprivate init?(_ tallies: [LabelTally]) {
        self.init(
            correct: tallies.map { Int($0.correct) }, predicted: tallies.map { Int($0.predicted) },
            actual: tallies.map { Int($0.actual) })
    }
}
