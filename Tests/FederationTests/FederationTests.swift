/// The federation as a value: joining, quorum, deadline, replacement, stale and hostile requests.

import Adapters
import ClientCore
import CoordinatorCore
import Plan
import Primitives
import Testing
import UpdateCodec
import Wire

/// A coordinator that is asked by hand.
private struct Bench {
    let service: CoordinatorService
    let store = MemoryFederationStore()
    let plan: FederationPlan
    var sessions: [String: UInt64] = [:]
    private var counter: UInt64 = 100

    init(_ plan: FederationPlan) throws {
        self.plan = plan
        service = try CoordinatorService(
            store: store, plan: plan, maps: Scenario.maps,
            start: try RunStart(plan: plan, maps: Scenario.maps, initial: nil), newRunID: "test", at: .zero,
            stopwatch: { .zero })
    }

    mutating func ask(_ request: Request, at now: Duration = .zero) throws -> Reply {
        counter += 1
        return try Reply(decoding: service.handle(request.encoded(), at: now, newSession: counter))
    }

    @discardableResult
    mutating func join(
        _ name: String, secret: UInt8 = 1, base: Digest? = nil, maximumRank: UInt32? = nil, examples: UInt64 = 5,
        evaluates: Bool = false, at now: Duration = .zero
    ) throws -> Reply {
        let reply = try ask(
            .hello(
                Hello(
                    softwareVersion: "test", name: name, secret: [UInt8](repeating: secret, count: 32),
                    baseDigest: base ?? plan.baseDigest, tokenizerDigest: plan.tokenizerDigest, maximumRank: maximumRank,
                    exampleCount: examples, hasEvaluationData: evaluates, sessionNonce: 0, kernelPath: "test")), at: now)
        if case .welcome(let welcome) = reply { sessions[name] = welcome.session }
        return reply
    }

    mutating func poll(_ name: String, at now: Duration = .zero) throws -> Task {
        guard case .task(let reply) = try ask(.poll(Poll(session: sessions[name] ?? 0, lastContribution: nil)), at: now)
        else { return .wait(milliseconds: 0, reason: "no task reply") }
        return reply.task
    }

    /// Uploads and commits an update of equal values.
    mutating func contribute(_ name: String, value: Float, round: UInt32 = 1, at now: Duration = .zero) throws -> Reply {
        let layout = try plan.specification(rank: plan.ranks[0], maps: Scenario.maps).trainedLayout
        let state = AdapterState(layout: layout, values: [Float](repeating: value, count: layout.parameterCount))
        return try contribute(name, bytes: EncodedState.encode(state), round: round, at: now)
    }

    mutating func contribute(_ name: String, bytes: [UInt8], round: UInt32 = 1, at now: Duration = .zero) throws -> Reply {
        let session = sessions[name] ?? 0
        let count = Chunking.count(ofByteCount: bytes.count)
        for index in 0..<count {
            let range = try #require(Chunking.range(ofChunk: index, byteCount: bytes.count))
            let reply = try ask(
                .uploadChunk(
                    UploadChunk(
                        session: session, kind: .update, round: round, digest: Digest(of: bytes), index: UInt32(index),
                        count: UInt32(count), totalBytes: UInt64(bytes.count), bytes: Array(bytes[range]))), at: now)
            if case .refused = reply { return reply }
        }
        return try commit(name, digest: Digest(of: bytes), totalBytes: bytes.count, round: round, at: now)
    }

    mutating func commit(
        _ name: String, digest: Digest, totalBytes: Int, round: UInt32 = 1, at now: Duration = .zero
    ) throws -> Reply {
        try ask(
            .commit(
                Commit(
                    session: sessions[name] ?? 0, kind: .update, round: round, attempt: 1, digest: digest,
                    totalBytes: UInt64(totalBytes), exampleCount: 5,
                    training: TrainingReport(trainLoss: 1, targetTokens: 10, trainSeconds: 1))),
            at: now)
    }
}

private func isTraining(_ task: Task) -> Bool { if case .train = task { true } else { false } }
private func refusal(_ reply: Reply) -> RefusalCode? { if case .refused(let refusal) = reply { refusal.code } else { nil } }
private func status(_ reply: Reply) -> ContributionStatus? {
    if case .committed(let committed) = reply { committed.status } else { nil }
}

@Suite struct FederationTests {
    @Test func whoMayNotJoinIsToldWhy() throws {
        var bench = try Bench(Scenario.plan(.flora, clients: 3))
        #expect(refusal(try bench.join("a", base: Digest(of: [9]))) == .wrongBase)
        #expect(refusal(try bench.join("a/b")) == .badMessage)
        #expect(refusal(try bench.join("a", maximumRank: 0)) == .rankTooSmall)
        #expect(refusal(try bench.join("a", examples: 0)) == .noExamples)
        guard case .welcome(let welcome) = try bench.join("a", maximumRank: 3) else { return #expect(Bool(false)) }
        #expect(welcome.rank == 2)
        #expect(refusal(try bench.join("a", secret: 2)) == .nameTaken)
        guard case .welcome = try bench.join("a", maximumRank: 3) else { return #expect(Bool(false)) }
    }

    @Test func aSecondJoinReplacesTheSessionAndForgettingFreesTheName() throws {
        var bench = try Bench(Scenario.plan(.fedit, clients: 2))
        try bench.join("a")
        let old = try #require(bench.sessions["a"])
        try bench.join("a")
        #expect(refusal(try bench.ask(.poll(Poll(session: old, lastContribution: nil)))) == .unknownSession)
        try bench.service.forget("a")
        guard case .welcome = try bench.join("a", secret: 2) else { return #expect(Bool(false)) }
    }

    @Test func aRoundWaitsForAllWithoutAQuorumAndClosesWithTheLast() throws {
        var bench = try Bench(Scenario.plan(.fedit, clients: 2, rounds: 1))
        try bench.join("a")
        #expect(!isTraining(try bench.poll("a")))
        try bench.join("b")
        #expect(isTraining(try bench.poll("a")))
        #expect(isTraining(try bench.poll("b")))
        #expect(status(try bench.contribute("a", value: 1)) == .pending)
        #expect(!isTraining(try bench.poll("a")))
        #expect(bench.service.federation.records.isEmpty)
        #expect(status(try bench.contribute("b", value: 3)) == .pending)
        #expect(bench.service.federation.phase == .finished)
        // Equal example counts: the mean of 1 and 3, added to B = 0.
        let weights = try bench.service.weights(afterRound: nil)
        #expect(weights.trained.tensor(1).allSatisfy { $0 == 2 })
    }

    @Test func atTheDeadlineTheQuorumIsEnoughAndALateContributionIsDropped() throws {
        var plan = Scenario.plan(.fedit, clients: 3, rounds: 2)
        plan.quorum = 2
        plan.deadlineSeconds = 30
        var bench = try Bench(plan)
        for name in ["a", "b", "c"] { try bench.join(name) }
        _ = try bench.contribute("a", value: 1)
        try bench.service.tick(at: .seconds(31))
        #expect(bench.service.federation.currentRound == 1, "one contribution is no quorum")
        _ = try bench.poll("b", at: .seconds(31))
        _ = try bench.contribute("b", value: 1, at: .seconds(32))
        try bench.service.tick(at: .seconds(70))
        #expect(bench.service.federation.currentRound == 2)
        #expect(bench.service.federation.records.map(\.participants) == [["a", "b"]])
        #expect(refusal(try bench.contribute("c", value: 1, round: 1, at: .seconds(71))) == .notSelected)
        #expect(bench.service.federation.records.count == 1)
    }

    @Test func withoutTheQuorumTheRoundIsRepeatedAndOnlyMissingClientsAreReplaced() throws {
        var plan = Scenario.plan(.fedit, clients: 4, rounds: 1)
        plan.clientsPerRound = 2
        plan.deadlineSeconds = 30
        var bench = try Bench(plan)
        for name in ["a", "b", "c", "d"] { try bench.join(name) }
        let first = try #require(bench.service.federation.attempt).selected
        #expect(first.count == 2)
        _ = try bench.contribute(first[0], value: 1)
        for name in ["a", "b", "c", "d"] where name != first[1] { _ = try bench.poll(name, at: .seconds(31)) }
        // The silent one was last heard of at its join, more than a minute before.
        try bench.service.tick(at: .seconds(75))
        let second = try #require(bench.service.federation.attempt)
        #expect(second.attempt == 2 && second.round == 1)
        #expect(second.selected.contains(first[0]) && !second.selected.contains(first[1]))
        #expect(!isTraining(try bench.poll(first[0], at: .seconds(76))), "its contribution is kept")
        let replacement = try #require(second.selected.first { $0 != first[0] })
        #expect(isTraining(try bench.poll(replacement, at: .seconds(76))))
        _ = try bench.contribute(replacement, value: 1, at: .seconds(77))
        #expect(bench.service.federation.records.map(\.attempts) == [2])
    }

    @Test func aRepeatedCommitIsAnsweredAgainAndCountedOnce() throws {
        var bench = try Bench(Scenario.plan(.fedit, clients: 2, rounds: 1))
        try bench.join("a")
        try bench.join("b")
        #expect(status(try bench.contribute("a", value: 1)) == .pending)
        #expect(status(try bench.contribute("a", value: 1)) == .pending)
        #expect(refusal(try bench.contribute("a", value: 2)) == .notSelected, "the first stays")
        #expect(bench.service.federation.contributions.count == 1)
        let traffic = bench.service.federation.traffic
        _ = try bench.contribute("a", value: 1)
        #expect(bench.service.federation.traffic.uplink == traffic.uplink, "a repetition is control traffic")
    }

    @Test func aCommitWithoutItsChunksNamesThem() throws {
        var bench = try Bench(Scenario.plan(.fedit, clients: 1, rounds: 1))
        try bench.join("a")
        guard case .committed(let committed) = try bench.commit("a", digest: Digest(of: [7]), totalBytes: 10) else {
            return #expect(Bool(false))
        }
        #expect(committed.missing == [0])
    }

    @Test func numbersThatNoTrainingGivesAreRefusedBeforeTheyAreSummed() throws {
        var bench = try Bench(Scenario.plan(.fedit, clients: 1, rounds: 1))
        try bench.join("a", evaluates: true)
        let session = bench.sessions["a"] ?? 0
        for (tokens, examples, loss) in [(UInt64.max, UInt64(1), 1.0), (10, .max, 1), (10, 1, 1e300)] {
            let report = ReportEvaluation(
                session: session, round: 0, lossSum: loss, targetTokens: tokens, examples: examples, exactMatches: nil)
            #expect(refusal(try bench.ask(.reportEvaluation(report))) == .badMessage)
        }
        for (loss, tokens) in [(1e300, UInt64(10)), (1, UInt64.max)] {
            let commit = Commit(
                session: session, kind: .update, round: 1, attempt: 1, digest: Digest(of: [1]), totalBytes: 10, exampleCount: 5,
                training: TrainingReport(trainLoss: loss, targetTokens: tokens, trainSeconds: 1))
            #expect(refusal(try bench.ask(.commit(commit))) == .badMessage)
        }
        #expect(refusal(try bench.contribute("a", value: 3e38)) == .badMessage, "sums of such values leave the range")
        #expect(status(try bench.contribute("a", value: 1)) != nil)
        #expect(bench.service.federation.records.count == 1)
    }

    @Test func aClientThatIsForgottenAfterItContributedStaysCounted() throws {
        var bench = try Bench(Scenario.plan(.fedit, clients: 2, rounds: 1))
        try bench.join("a")
        try bench.join("b")
        #expect(status(try bench.contribute("a", value: 1)) == .pending)
        try bench.service.forget("a")
        #expect(status(try bench.contribute("b", value: 3)) != nil)
        #expect(bench.service.federation.records.map(\.participants) == [["a", "b"]])
    }

    @Test func contributionsThatAreNotWhatThePlanSaysAreRefusedAndChangeNothing() throws {
        var bench = try Bench(Scenario.plan(.fedit, clients: 1, rounds: 1))
        try bench.join("a")
        let layout = try bench.plan.specification(rank: 4, maps: Scenario.maps).trainedLayout
        var values = [Float](repeating: 0, count: layout.parameterCount)
        values[5] = .nan
        let poisoned = EncodedState.encode(AdapterState(layout: layout, values: values))
        #expect(refusal(try bench.contribute("a", bytes: poisoned)) == .badMessage)
        for (rank, code) in [(2, RefusalCode.badMessage), (8, .tooLarge)] {
            let otherLayout = try bench.plan.specification(rank: rank, maps: Scenario.maps).trainedLayout
            let other = EncodedState.encode(AdapterState(zeros: otherLayout))
            #expect(refusal(try bench.contribute("a", bytes: other)) == code)
        }
        var flipped = EncodedState.encode(AdapterState(zeros: layout))
        flipped[100] ^= 1
        #expect(refusal(try bench.contribute("a", bytes: flipped)) == .badMessage)
        #expect(bench.service.federation.contributions.isEmpty)
        #expect(status(try bench.contribute("a", value: 1)) == .pending)
    }

    @Test func aClientThatWasNotSelectedCannotContribute() throws {
        var plan = Scenario.plan(.fedit, clients: 3, rounds: 1)
        plan.clientsPerRound = 1
        var bench = try Bench(plan)
        for name in ["a", "b", "c"] { try bench.join(name) }
        let selected = try #require(bench.service.federation.attempt).selected[0]
        let other = try #require(["a", "b", "c"].first { $0 != selected })
        #expect(refusal(try bench.contribute(other, value: 1)) == .notSelected)
    }

    @Test func blobsAreServedInChunksAndOthersAreRefused() throws {
        var bench = try Bench(Scenario.plan(.fedit, clients: 1, rounds: 1))
        try bench.join("a")
        guard case .train(let task) = try bench.poll("a") else { return #expect(Bool(false)) }
        let blob = try #require(task.blobs.first)
        let session = try #require(bench.sessions["a"])
        guard case .chunk(let chunk) = try bench.ask(.fetchChunk(FetchChunk(session: session, digest: blob.digest, index: 0)))
        else { return #expect(Bool(false)) }
        #expect(Digest(of: chunk.bytes) == blob.digest && chunk.count == 1)
        #expect(refusal(try bench.ask(.fetchChunk(FetchChunk(session: session, digest: blob.digest, index: 1)))) == .unknownBlob)
        let unknown = FetchChunk(session: session, digest: Digest(of: [1, 2]), index: 0)
        #expect(refusal(try bench.ask(.fetchChunk(unknown))) == .unknownBlob)
    }

    @Test func randomBytesAndRandomRequestsNeverTrap() throws {
        var plan = Scenario.plan(.fedit, clients: 1, rounds: 1)
        plan.quorum = 1
        var bench = try Bench(plan)
        try bench.join("a")
        var generator = SeededGenerator(seed: 3, purpose: "fuzz")
        let layout = try plan.specification(rank: 4, maps: Scenario.maps).trainedLayout
        for _ in 0..<3000 {
            var bytes: [UInt8] = []
            let session = generator.integer(below: 2) == 0 ? bench.sessions["a"] ?? 0 : generator.next()
            let digest = Digest(of: [UInt8(generator.integer(below: 3))])
            let word = { (generator: inout SeededGenerator) in UInt32(truncatingIfNeeded: generator.next()) }
            switch generator.integer(below: 6) {
            case 0: bytes = (0..<generator.integer(below: 64)).map { _ in UInt8(truncatingIfNeeded: generator.next()) }
            case 1:
                bytes = Request.uploadChunk(
                    UploadChunk(
                        session: session, kind: .update, round: word(&generator) % 3, digest: digest,
                        index: 0, count: 1, totalBytes: UInt64(EncodedState.byteLimit(layout: layout, codec: .float32)),
                        bytes: [UInt8](repeating: 1, count: EncodedState.byteLimit(layout: layout, codec: .float32)))
                ).encoded()
            case 2:
                bytes = Request.commit(
                    Commit(
                        session: session, kind: .update, round: word(&generator) % 3, attempt: word(&generator),
                        digest: digest, totalBytes: UInt64(word(&generator)), exampleCount: UInt64.max,
                        training: TrainingReport(trainLoss: -1e300, targetTokens: UInt64.max, trainSeconds: 0))
                ).encoded()
            case 3: bytes = Request.fetchChunk(FetchChunk(session: session, digest: digest, index: word(&generator))).encoded()
            case 4:
                bytes = Request.reportEvaluation(
                    ReportEvaluation(
                        session: session, round: word(&generator) % 2, lossSum: 1, targetTokens: UInt64.max,
                        examples: UInt64.max, exactMatches: UInt64.max)
                ).encoded()
            default:
                bytes = Request.heartbeat(
                    Heartbeat(session: session, round: word(&generator), step: word(&generator), totalSteps: 0)
                ).encoded()
            }
            _ = try Reply(decoding: bench.service.handle(bytes, at: .zero, newSession: generator.next()))
        }
        #expect(bench.service.federation.currentRound == 1)
    }
}
