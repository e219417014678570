/// Opening rounds, deadlines, closing rounds.

import Plan
import Primitives
import Privacy

extension Federation {
    /// Opens what can be opened: the start, a round, the end. Called after every request and every tick.
    mutating func advance(at now: Duration) -> [StoreChange] {
        switch phase {
        case .waiting:
            return openNext(at: now)
        case .starting(let starter, let deadline):
            guard now >= deadline || members[starter] == nil else { return [] }
            skippedStarters.insert(starter)
            phase = .waiting(reason: "")
            return openNext(at: now)
        case .finalEvaluation(let deadline):
            let missing = liveMembers(at: now).filter {
                members[$0]?.hasEvaluationData == true && evaluations[lastRound]?[$0] == nil
            }
            guard missing.isEmpty || now >= deadline else { return [] }
            return finish()
        case .round, .finished:
            return []
        }
    }

    /// Whether the open round is to be combined now: its deadline has passed with at least the quorum.
    ///
    /// Without the quorum the round is repeated: the same round, the next attempt; stored contributions are kept and
    /// only missing clients are replaced.
    public mutating func tick(at now: Duration) -> (changes: [StoreChange], combine: Bool) {
        guard case .round(let deadline) = phase, let attempt else { return (advance(at: now), false) }
        if attempt.selected.allSatisfy({ contributions[$0] != nil }) { return ([], true) }
        guard now >= deadline else { return ([], false) }
        if contributions.count >= quorum { return ([], true) }
        let kept = contributions.keys.sorted()
        let candidates = liveMembers(at: now).filter { contributions[$0] == nil }
        guard kept.count + candidates.count >= quorum else { return ([], false) }
        let wanted = max(plan.clientsPerRound > 0 ? plan.clientsPerRound : kept.count + candidates.count, quorum) - kept.count
        let next = RoundAttempt(
            round: attempt.round, attempt: attempt.attempt + 1,
            selected: (kept + select(wanted, from: candidates, round: attempt.round, attempt: attempt.attempt + 1)).sorted())
        self.attempt = next
        phase = .round(deadline: now + .seconds(plan.deadlineSeconds))
        return ([.attempt(next)], false)
    }

    /// Whom an open round still waits for, ascending.
    public var missing: [String] { attempt?.selected.filter { contributions[$0] == nil } ?? [] }

    private func select(_ count: Int, from names: [String], round: Int, attempt: Int) -> [String] {
        guard count < names.count else { return names }
        var generator = SeededGenerator(seed: plan.seed, purpose: "selection", round: round, attempt: attempt)
        return Array(generator.permutation(names.count).prefix(count)).sorted().map { names[$0] }
    }

    /// Client-level privacy: every enrolled client with the plan's probability, independently of all others and of whether it
    /// can be heard of now.
    private func draw(round: Int) -> [String] {
        guard let noise else { preconditionFailure("client-level privacy without a key: the service makes one with the run") }
        return members.keys.sorted().filter { name in
            var stream = NoiseStream(key: noise.key.derived("selection of " + name, round: round))
            return stream.bernoulli(plan.clientSamplingRate)
        }
    }

    private mutating func openNext(at now: Duration) -> [StoreChange] {
        if members.count < plan.minimumClients {
            phase = .waiting(reason: "clients: \(members.count) of \(plan.minimumClients) have joined")
            return []
        }
        if adapter == nil {
            // A start that a client makes is still to come; every other run has its adapter from the beginning.
            let candidates = liveMembers(at: now).filter { !plan.needsUnquantizedModel || unquantizedHolders.contains($0) }
            guard let starter = candidates.first(where: { !skippedStarters.contains($0) }) ?? candidates.first else {
                phase = .waiting(
                    reason: plan.needsUnquantizedModel
                        ? "a client with --unquantized-model to compute the start" : "a client to compute the start")
                return []
            }
            phase = .starting(client: starter, deadline: now + .seconds(plan.deadlineSeconds))
            return []
        }
        let live = liveMembers(at: now)
        guard live.count >= quorum else {
            let absent = members.keys.filter { !live.contains($0) }.sorted()
            phase = .waiting(
                reason:
                    "\(quorum - live.count) more clients for the quorum of \(quorum) (not heard of: \(absent.joined(separator: ", ")))"
            )
            return []
        }
        let round = (records.last?.round ?? 0) + 1
        let count = plan.clientsPerRound > 0 ? plan.clientsPerRound : live.count
        let selected =
            plan.privacy == .client ? draw(round: round) : select(count, from: live, round: round, attempt: 1)
        let opened = RoundAttempt(round: round, attempt: 1, selected: selected)
        attempt = opened
        contributions = [:]
        sentChunks = []
        receivedChunks = [:]
        phase = .round(deadline: now + .seconds(plan.deadlineSeconds))
        return [.attempt(opened)]
    }

    /// The start has arrived: rounds can begin.
    mutating func started(_ start: GlobalAdapter, at now: Duration) -> [StoreChange] {
        adapter = start
        phase = .waiting(reason: "")
        return [.adapter(start)] + openNext(at: now)
    }

    /// Client and weight of each contribution to the open round, ascending by name.
    public var weights: [(client: String, weight: Double)] {
        contributions.keys.sorted().map { name in
            // A client that claims to have no examples, or does not tell, must not make the round's total zero.
            (name, plan.weighting.weight(examples: max(1, contributions[name]?.exampleCount ?? 1)))
        }
    }

    /// The round's contributions are combined into `next`: closes it and opens what follows.
    mutating func close(with next: GlobalAdapter, seconds: Double, at now: Duration) -> [StoreChange] {
        guard let attempt else { return [] }
        let names = contributions.keys.sorted()
        var lossSum = 0.0
        var tokens = 0
        for name in names {
            guard let record = contributions[name], let loss = record.trainLoss, let count = record.targetTokens else { continue }
            lossSum += loss * Double(count)
            tokens += count
        }
        let record = RoundRecord(
            round: attempt.round, attempts: attempt.attempt, participants: names,
            trainLoss: tokens > 0 ? lossSum / Double(tokens) : nil, traffic: traffic, seconds: seconds,
            epsilon: plan.clientEpsilon(afterRounds: attempt.round),
            clip: plan.privacy == .client ? adapter?.clip ?? plan.clip : nil)
        records.append(record)
        lastClosed = contributions.mapValues { record in
            var counted = record
            counted.counted = true
            return counted
        }
        adapter = next
        contributions = [:]
        self.attempt = nil
        traffic = Traffic()
        var changes: [StoreChange] = [.adapter(next), .closeRound(record), .traffic(traffic)]
        if attempt.round == lastRound {
            phase = .finalEvaluation(deadline: now + .seconds(finalEvaluationSeconds))
            changes += advance(at: now)
        } else {
            phase = .waiting(reason: "")
            changes += openNext(at: now)
        }
        return changes
    }

    private mutating func finish() -> [StoreChange] {
        phase = .finished
        return foldTraffic() + [.finished]
    }

    /// Once the run is finished, what travelled after its last round counts in that round's record.
    mutating func foldTraffic() -> [StoreChange] {
        guard phase == .finished, traffic != Traffic(), var last = records.popLast() else { return [] }
        last.traffic = last.traffic + traffic
        traffic = Traffic()
        records.append(last)
        return [.updateRecord(last)]
    }

    /// Whether every client that is still there knows that the run is over.
    public func everyoneKnows(at now: Duration) -> Bool {
        phase == .finished && liveMembers(at: now).allSatisfy(toldFinished.contains)
    }
}
