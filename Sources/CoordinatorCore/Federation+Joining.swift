/// Joining: who may take part, and as whom.

import Plan
import Primitives
import Wire

extension Federation {
    mutating func join(_ hello: Hello, at now: Duration, session: UInt64) -> Decision {
        if let problem = WireLimits.problem(inClientName: hello.name) {
            return Self.refusal(.badMessage, problem)
        }
        guard hello.baseDigest == plan.baseDigest else {
            return Self.refusal(
                .wrongBase,
                "client \(hello.name) holds another base model (digest \(hello.baseDigest.short)) than this run (\(plan.baseDigest.short)): give --model the same checkpoint, in the same stored form, as the coordinator's"
            )
        }
        guard hello.tokenizerDigest == plan.tokenizerDigest else {
            return Self.refusal(
                .wrongTokenizer,
                "client \(hello.name) holds another tokenizer.json (digest \(hello.tokenizerDigest.short)) than this run (\(plan.tokenizerDigest.short)): copy the coordinator's"
            )
        }
        if phase == .finished {
            return Self.refusal(.runFinished, "the run is finished: nothing is left to train")
        }
        let secretHash = Digest(of: hello.secret)
        let maximumRank = hello.maximumRank.map(Int.init)
        if let member = members[hello.name] {
            guard member.secretHash == secretHash else {
                return Self.refusal(
                    .nameTaken,
                    "the name \(hello.name) belongs to another client of this run: choose another --name, or, if that client lost its state, run `tributary coordinator forget \(hello.name)` first"
                )
            }
            if let maximumRank, maximumRank < member.rank {
                return Self.refusal(
                    .rankTooSmall,
                    "client \(hello.name) joined with rank \(member.rank), which --max-rank \(maximumRank) no longer allows: raise --max-rank"
                )
            }
            return admit(member, hello, at: now, session: session, isNew: false)
        }
        guard let rank = plan.rank(maximum: maximumRank) else {
            return Self.refusal(
                .rankTooSmall,
                "--max-rank \(maximumRank ?? 0) is below this run's smallest rank \(plan.ranks.min() ?? 0): raise --max-rank")
        }
        let exampleCount = plan.tellsCounts ? hello.exampleCount.map { Int(clamping: $0) } : nil
        guard exampleCount != 0 else {
            return Self.refusal(.noExamples, "client \(hello.name) has no usable training example")
        }
        guard exampleCount != nil || plan.weighting == .uniform else {
            return Self.refusal(
                .noExamples, "client \(hello.name) does not tell how many examples it has, by which this run weighs contributions"
            )
        }
        let member = Member(
            name: hello.name, secretHash: secretHash, rank: rank, exampleCount: exampleCount,
            hasEvaluationData: hello.hasEvaluationData && plan.allowsEvaluation)
        return admit(member, hello, at: now, session: session, isNew: true)
    }

    private mutating func admit(
        _ known: Member, _ hello: Hello, at now: Duration, session: UInt64, isNew: Bool
    ) -> Decision {
        var member = known
        member.hasEvaluationData = hello.hasEvaluationData && plan.allowsEvaluation
        if hello.hasUnquantizedModel { unquantizedHolders.insert(member.name) } else { unquantizedHolders.remove(member.name) }
        for (old, name) in sessions where name == member.name { sessions[old] = nil }
        sessions[session] = member.name
        lastSeen[member.name] = now
        var decision = Decision(
            .welcome(
                Welcome(
                    softwareVersion: Version.current, runID: runID, session: session, rank: UInt32(member.rank),
                    heartbeatSeconds: Self.heartbeatSeconds)))
        if isNew || member != known { decision.changes.append(.member(member)) }
        members[member.name] = member
        decision.changes += advance(at: now)
        return decision
    }

    /// Lets a name be taken anew. Its earlier contributions stay counted.
    public mutating func forget(_ name: String) -> [StoreChange] {
        guard members.removeValue(forKey: name) != nil else { return [] }
        lastSeen[name] = nil
        for (session, owner) in sessions where owner == name { sessions[session] = nil }
        return [.forget(name: name)]
    }
}
