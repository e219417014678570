/// Compression in whole federations: every codec in every strategy, remainders that are neither lost nor applied twice,
/// compressed downlinks, FLoRA's factors, and what the record says.

import Adapters
import Checkpoints
import ClientCore
import CoordinatorCore
import CoordinatorStore
import FoundationEssentials
import Plan
import Primitives
import Privacy
import TestSupport
import Testing
import UpdateCodec
import Wire

private func codec(_ text: String) throws -> UpdateCodec { try UpdateCodec(parsing: text) }

@Suite struct CompressionFederationTests {
    static let codecs = [
        "f32", "bf16", "int8", "topk:0.2", "compeft:0.1", "compeft:0.1:global", "compeft:0.2:sigma=1",
    ]

    private static func plan(
        _ strategy: StrategyName, _ text: String, feedback: Bool, clients: Int = 4, rounds: Int = 3
    ) throws -> FederationPlan {
        var plan = Scenario.plan(strategy, clients: clients, rounds: rounds)
        plan.compress = try codec(text)
        plan.errorFeedback = feedback
        return plan
    }

    // MARK: - Every codec in every strategy

    @Test(arguments: StrategyName.allCases, codecs)
    func everyCodecRunsAndGivesTheSameBitsTwice(strategy: StrategyName, text: String) throws {
        let exact = try Scenario.run(Scenario.plan(strategy), store: MemoryFederationStore())
        var seen: Set<Digest> = []
        for feedback in [false, true] {
            let plan = try Self.plan(strategy, text, feedback: feedback)
            guard !feedback || (strategy != .flora && plan.compress.allowsErrorFeedback) else {
                #expect(throws: Failure.self) { try plan.validate(maps: Scenario.maps) }
                continue
            }
            let first = try Scenario.run(plan, store: MemoryFederationStore())
            #expect(try Scenario.run(plan, store: MemoryFederationStore()) == first)
            #expect((first == exact) == (text == "f32"))
            seen.insert(first)
        }
        let hasFeedback = try strategy != .flora && codec(text).allowsErrorFeedback
        #expect(seen.count == (hasFeedback ? 2 : 1), "feedback changes bits")
    }

    // MARK: - Kills

    @Test(arguments: [
        (StrategyName.fedit, "compeft:0.1"), (.fedSB, "int8"), (.ffaLoRA, "topk:0.1"), (.flora, "compeft:0.2"),
    ])
    func aCoordinatorKilledAfterAnyWriteChangesNoBit(strategy: StrategyName, text: String) throws {
        var plan = try Self.plan(strategy, text, feedback: strategy != .flora, clients: 3, rounds: 2)
        if strategy != .flora { plan.compressDownlink = try codec("compeft:0.1") }
        let reference = try Scenario.run(plan, store: MemoryFederationStore())
        var writes = 0
        while true {
            let store = MemoryFederationStore()
            let folder = TemporaryFolder()
            let killed: Bool
            do {
                _ = try Scenario.run(plan, store: DyingStore(store, after: writes), folder: folder.path)
                killed = false
            } catch {
                #expect("\(error)" == "killed", "after \(writes) writes")
                killed = true
            }
            guard killed else { break }
            #expect(try Scenario.run(plan, store: store, folder: folder.path) == reference, "killed after \(writes) writes")
            writes += 1
        }
        #expect(writes > 10)
    }

    /// A federation of three, one of whose clients dies after each number of writes and starts again with what it kept.
    private func killsOfAClient(_ plan: FederationPlan, privacy: ClientPrivacy = ClientPrivacy()) throws {
        let names = ["a", "b", "c"]
        func run(after writes: Int) throws -> (bits: Digest, died: Bool, entries: Int) {
            let rig = try Rig(plan)
            let storages = Dictionary(uniqueKeysWithValues: names.map { ($0, WatchedStorage.inMemory($0)) })
            func start(_ name: String) throws {
                rig.start(name, try #require(storages[name]), Self.keyedWork(name), privacy: privacy)
            }
            for name in names { try start(name) }
            let fragile = try #require(storages["b"])
            fragile.writesLeft = writes
            var died = false
            while rig.service.federation.phase != .finished {
                do throws(Failure) {
                    try rig.run(names)
                } catch {
                    guard error.message == "killed", !died else { throw error }
                    died = true
                    fragile.writesLeft = .max
                    try start("b")
                }
            }
            return (try rig.digest(), died, try fragile.ledger().entries.count)
        }
        let undisturbed = try run(after: .max)
        var writes = 0
        while true {
            let (bits, died, entries) = try run(after: writes)
            guard died else { break }
            #expect(bits == undisturbed.bits, "killed after \(writes) writes")
            #expect(entries == undisturbed.entries, "killed after \(writes) writes")
            writes += 1
        }
        #expect(writes >= 2 * plan.rounds)
    }

    /// An update that depends on round, client, given weights and, under privacy, on the noise key.
    static func keyedWork(_ name: String) -> FormulaWork {
        FormulaWork(name) { assignment in
            var generator = SeededGenerator(seed: 5, purpose: "keyed", round: assignment.round, client: assignment.client)
            var state = assignment.weights.trained
            let key = assignment.privacy.map { Float($0.key.bytes[3]) / 1000 } ?? 0
            for index in state.values.indices { state.values[index] = 0.9 * state.values[index] + generator.symmetric(0.1) + key }
            return state
        }
    }

    @Test(arguments: [
        (StrategyName.fedit, "compeft:0.1"), (.ffaLoRA, "int8"), (.fedSB, "topk:0.2"), (.fedit, "bf16"),
    ])
    func aClientKilledAfterAnyWriteNeitherLosesItsRemainderNorAppliesItTwice(strategy: StrategyName, text: String) throws {
        var plan = try Self.plan(strategy, text, feedback: true, clients: 3, rounds: 4)
        plan.compressDownlink = try codec("compeft:0.2")
        try killsOfAClient(plan)
    }

    @Test func aClientKilledAfterAnyWriteOfPrivateTrainingIsChargedOnceAndChangesNoBit() throws {
        var plan = try Self.plan(.fedit, "compeft:0.2", feedback: true, clients: 3, rounds: 3)
        plan.privacy = .example
        plan.weighting = .uniform
        plan.gradientClip = 0
        plan.noiseMultiplier = 2
        try killsOfAClient(plan, privacy: ClientPrivacy(unsafeSeed: 3))
    }

    @Test func lostRepliesAndLostRequestsChangeNoBit() throws {
        let plan = try Self.plan(.fedit, "compeft:0.1", feedback: true, clients: 2, rounds: 4)
        func run(_ seed: UInt64?) throws -> Digest {
            let rig = try Rig(plan)
            for name in ["a", "b"] { rig.start(name, WatchedStorage.inMemory(name), FormulaWork(name)) }
            var generator = SeededGenerator(seed: seed ?? 0, purpose: "losses")
            func lose(_ request: Request) throws(Failure) {
                if case .heartbeat = request { return }
                if seed != nil, generator.integer(below: 5) == 0 { throw Failure(.unavailable, "lost") }
            }
            rig.intercept = { (_, request) throws(Failure) in try lose(request) }
            rig.interceptReply = { (_, request) throws(Failure) in try lose(request) }
            for _ in 0..<1000 where rig.service.federation.phase != .finished {
                do throws(Failure) { try rig.run(["a", "b"]) } catch { #expect(error.message == "lost") }
            }
            #expect(rig.service.federation.phase == .finished)
            return try rig.digest()
        }
        let reference = try run(nil)
        for seed in 1...8 { #expect(try run(UInt64(seed)) == reference, "losses \(seed)") }
    }

    // MARK: - The client's record

    private static func contribution(_ round: Int, _ byte: UInt8, isStart: Bool = false) throws -> KeptContribution {
        let json =
            #"{"isStart":\#(isStart),"round":\#(round),"attempt":1,"digest":"\#(Digest(of: [byte]))","isAcknowledged":false}"#
        return try JSONDecoder().decode(KeptContribution.self, from: Data(json.utf8))
    }

    private static func residual(_ round: Int, _ byte: UInt8, context: Digest = Digest(of: [0])) throws -> Residual {
        let json = #"{"round":\#(round),"digest":"\#(Digest(of: [byte]))","context":"\#(context)"}"#
        return try JSONDecoder().decode(Residual.self, from: Data(json.utf8))
    }

    @Test func theRemainderInForceFollowsFromWhatBecameOfTheContribution() throws {
        var record = ClientRecord(run: "r")
        #expect(record.pending == nil && record.answered == nil && record.residual(given: .none) == nil)
        let (first, second) = (try Self.contribution(1, 1), try Self.contribution(2, 2))
        let (one, two) = (try Self.residual(1, 11), try Self.residual(2, 12))

        record.begin(first, from: nil, leaving: one)
        #expect(record.pending == first && record.answered == nil)
        #expect(record.digests == [first.digest, one.digest])
        record.acknowledge()
        #expect(record.pending == nil && record.answered == ContributionKey(round: 1, digest: first.digest))
        #expect(record.digests == [one.digest], "acknowledged bytes are not needed any more")
        #expect(record.residual(given: .counted) == one && record.residual(given: .dropped) == nil)

        record.begin(second, from: record.residual(given: .counted), leaving: two)
        #expect(record.digests == [second.digest, one.digest, two.digest])
        record.acknowledge()
        #expect(record.residual(given: .dropped) == one, "the earlier remainder is restored")
        #expect(record.residual(given: .counted) == two)

        // Dropped in the answer to its commit: as if it had not been made.
        record.begin(try Self.contribution(3, 3), from: two, leaving: try Self.residual(3, 13))
        record.drop()
        #expect(record.pending == nil && record.answered == nil)
        #expect(record.residual(given: .none) == two && record.digests == [two.digest])
    }

    @Test func aStartIsNeverAskedAboutAndARecordSurvivesItsEncoding() throws {
        var record = ClientRecord(run: "r")
        record.begin(try Self.contribution(0, 1, isStart: true), from: nil, leaving: nil)
        #expect(record.pending != nil)
        record.acknowledge()
        #expect(record.pending == nil && record.answered == nil)
        record.begin(try Self.contribution(4, 4), from: try Self.residual(3, 13), leaving: try Self.residual(4, 14))
        #expect(try JSONDecoder().decode(ClientRecord.self, from: JSONEncoder().encode(record)) == record)
    }

    // MARK: - Dropped contributions and rounds without the client

    /// What error feedback makes of these, by hand.
    private static func fed(
        _ update: AdapterState, _ residual: AdapterState?, factor: Float, _ codec: UpdateCodec
    ) throws -> (
        bytes: [UInt8], residual: AdapterState
    ) {
        var corrected = update
        if let residual {
            for index in corrected.values.indices { corrected.values[index] += factor * residual.values[index] }
        }
        let bytes = EncodedState.encode(corrected, codec: codec)
        let decoded = try EncodedState.decode(bytes, layout: update.layout, codecs: [codec])
        return (bytes, corrected.update(since: decoded))
    }

    @Test func aContributionThatCameTooLateRestoresTheEarlierRemainder() throws {
        var plan = try Self.plan(.fedit, "compeft:0.1", feedback: true, clients: 2, rounds: 3)
        plan.quorum = 1
        plan.deadlineSeconds = 20
        let rig = try Rig(plan)
        let work = FormulaWork("b")
        rig.start("a", WatchedStorage.inMemory("a"), FormulaWork("a"))
        rig.start("b", WatchedStorage.inMemory("b"), work)
        try rig.run(["a", "b"], untilRound: 2)
        let first = try Self.fed(work.updates[0], nil, factor: 0, plan.compress)
        #expect(rig.uploaded("b", round: 1) == first.bytes)

        // In round 2 the line breaks after training; the round closes without it.
        rig.intercept = { (client, request) throws(Failure) in
            if client == "b", case .uploadChunk = request { throw Failure(.unavailable, "lost") }
        }
        try rig.stepUntilItWaits("a")
        #expect(throws: Failure.self) { try rig.stepUntilItWaits("b") }
        try rig.passDeadline()
        #expect(rig.service.federation.records.map(\.participants) == [["a", "b"], ["a"]])
        rig.intercept = { (_, _) throws(Failure) in }
        guard case .worked(.contributed(2, _, _, _, .dropped)) = try rig.step("b") else {
            return #expect(Bool(false), "the late one is dropped")
        }
        try rig.run(["a", "b"])
        #expect(work.updates.count == 3)
        // One round was missed: the remainder of round 1 counts 0.9 times.
        let third = try Self.fed(work.updates[2], first.residual, factor: 0.9, plan.compress)
        #expect(rig.uploaded("b", round: 3) == third.bytes)
    }

    @Test func aContributionThatWasAcknowledgedAndThenDroppedRestoresTheEarlierRemainder() throws {
        // The coordinator's state is put back to before the contribution: what it acknowledged is gone.
        var plan = try Self.plan(.fedit, "compeft:0.1", feedback: true, clients: 2, rounds: 3)
        plan.quorum = 1
        plan.deadlineSeconds = 20
        let rig = try Rig(plan)
        let work = FormulaWork("b")
        let storage = WatchedStorage.inMemory("b")
        rig.start("a", WatchedStorage.inMemory("a"), FormulaWork("a"))
        rig.start("b", storage, work)
        try rig.run(["a", "b"], untilRound: 2)
        let first = try Self.fed(work.updates[0], nil, factor: 0, plan.compress)
        var record = try #require(try storage.record(run: "test"))
        let lost = try Self.residual(2, 99)
        record.begin(try Self.contribution(2, 98), from: record.residual(given: .counted), leaving: lost)
        record.acknowledge()
        try storage.keep(record, bytes: [])
        try rig.run(["a", "b"], untilRound: 3)
        let second = try Self.fed(work.updates[1], first.residual, factor: 1, plan.compress)
        #expect(rig.uploaded("b", round: 2) == second.bytes)
    }

    @Test(arguments: [1, 2]) func aRemainderDecaysInEveryRoundWithoutItsClient(missed: Int) throws {
        var plan = try Self.plan(.ffaLoRA, "topk:0.1", feedback: true, clients: 2, rounds: missed + 2)
        plan.quorum = 1
        plan.deadlineSeconds = 20
        let rig = try Rig(plan)
        let work = FormulaWork("b")
        rig.start("a", WatchedStorage.inMemory("a"), FormulaWork("a"))
        rig.start("b", WatchedStorage.inMemory("b"), work)
        try rig.run(["a", "b"], untilRound: 2)
        let first = try Self.fed(work.updates[0], nil, factor: 0, plan.compress)
        for _ in 0..<missed {
            try rig.stepUntilItWaits("a")
            try rig.passDeadline()
        }
        #expect(rig.service.federation.currentRound == missed + 2)
        try rig.run(["a", "b"])
        let factor = Float(missed == 1 ? 0.9 : 0.9 * 0.9)
        let last = try Self.fed(work.updates[1], first.residual, factor: factor, plan.compress)
        #expect(rig.uploaded("b", round: missed + 2) == last.bytes)
    }

    @Test(arguments: ["as it was", "another run", "other factors", "another layout"])
    func aRemainderBelongsToItsRunFactorsAndLayout(change: String) throws {
        let plan = try Self.plan(.ffaLoRA, "compeft:0.1", feedback: true, clients: 1, rounds: 1)
        let weights = plan.derivedWeights(try plan.specification(rank: 4, maps: Scenario.maps))
        var carried = AdapterState(zeros: weights.trained.layout)
        for index in carried.values.indices { carried.values[index] = index % 7 == 0 ? 0.5 : -0.25 }
        if change == "another layout" {
            carried = AdapterState(zeros: try plan.specification(rank: 2, maps: Scenario.maps).trainedLayout)
        }
        let frozen = change == "other factors" ? Digest(of: [9]) : try #require(weights.frozen).digest
        let left = EncodedState.encode(carried)
        let context = Digest(of: carried.layout.digest.bytes + frozen.bytes)
        let json = #"{"round":0,"digest":"\#(Digest(of: left))","context":"\#(context)"}"#
        let residual = try JSONDecoder().decode(Residual.self, from: Data(json.utf8))
        var record = ClientRecord(run: change == "another run" ? "other" : "test")
        record.begin(try Self.contribution(0, 1), from: residual, leaving: nil)
        record.drop()
        let storage = WatchedStorage.inMemory("a")
        try storage.keep(record, bytes: [left])
        let rig = try Rig(plan)
        let work = FormulaWork("a")
        rig.start("a", storage, work)
        try rig.run(["a"])
        let isKept = change == "as it was"
        let expected = try Self.fed(work.updates[0], isKept ? carried : nil, factor: 1, plan.compress)
        #expect(rig.uploaded("a", round: 1) == expected.bytes)
    }

    // MARK: - The downlink

    @Test(arguments: [StrategyName.fedit, .ffaLoRA, .fedSB], ["compeft:0.1", "int8", "bf16", "topk:0.2"])
    func everyClientHoldsTheCoordinatorsStateAndFetchesLess(strategy: StrategyName, text: String) throws {
        func run(_ downlink: String) throws -> [Int] {
            var plan = try Self.plan(strategy, "compeft:0.2", feedback: true, clients: 3, rounds: 4)
            // Large enough for bytes to be what counts.
            plan.ranks = [16]
            plan.compressDownlink = try codec(downlink)
            let rig = try Rig(plan)
            let works = ["a", "b", "c"].map { FormulaWork($0) }
            for (name, work) in zip(["a", "b", "c"], works) { rig.start(name, WatchedStorage.inMemory(name), work) }
            try rig.run(["a", "b", "c"])
            for work in works {
                for assignment in work.assignments {
                    let held = try rig.service.weights(afterRound: assignment.round - 1)
                    #expect(assignment.weights == held, "round \(assignment.round)")
                }
            }
            return rig.service.federation.records.map(\.traffic.downlink)
        }
        let (compressed, whole) = (try run(text), try run("f32"))
        let factor = text == "bf16" ? 0.75 : 0.6
        for round in 1..<4 { #expect(Double(compressed[round]) < factor * Double(whole[round]), "\(compressed) \(whole)") }
    }

    @Test func aClientThatMissedARoundFetchesTheWholeState() throws {
        var plan = try Self.plan(.fedit, "compeft:0.2", feedback: true, clients: 2, rounds: 5)
        plan.compressDownlink = try codec("compeft:0.1")
        plan.quorum = 1
        plan.deadlineSeconds = 20
        let rig = try Rig(plan)
        let work = FormulaWork("b")
        rig.start("a", WatchedStorage.inMemory("a"), FormulaWork("a"))
        rig.start("b", WatchedStorage.inMemory("b"), work)
        try rig.run(["a", "b"], untilRound: 3)
        try rig.stepUntilItWaits("a")
        try rig.passDeadline()
        try rig.run(["a", "b"])
        #expect(work.assignments.map(\.round) == [1, 2, 4, 5])
        let stored = try #require(try rig.store.load())
        func fetched(_ name: String) -> Set<Digest> {
            Set(
                rig.log.compactMap { exchange in
                    guard exchange.client == name, case .fetchChunk(let fetch) = exchange.request else { return nil }
                    return fetch.digest
                })
        }
        func digests(_ round: Int) throws -> (state: Digest, delta: Digest) {
            let adapter = try #require(stored.adapters.first { $0.round == round })
            return (try #require(adapter.blobs.first { $0.kind == .state }).digest, try #require(adapter.delta).digest)
        }
        #expect(fetched("b") == [try digests(1).delta, try digests(3).state, try digests(4).delta])
        #expect(fetched("a") == Set(try (1...4).map { try digests($0).delta }))
        for assignment in work.assignments {
            #expect(assignment.weights.trained == (try rig.state(afterRound: assignment.round - 1)))
        }
    }

    @Test func whatTheDownlinkLeavesOutIsSentLater() throws {
        // One client that asks for the same change in every round: after T rounds T times the change less what is still owed.
        var plan = Scenario.plan(.fedit, clients: 1, rounds: 40)
        plan.compressDownlink = try codec("compeft:0.1")
        let rig = try Rig(plan)
        rig.start("a", WatchedStorage.inMemory("a"), FormulaWork("a", norm: 1))
        try rig.run(["a"])
        let first = try rig.state(afterRound: 0)
        var change = AdapterState(zeros: first.layout)
        var generator = SeededGenerator(seed: 6, purpose: "direction", client: "a")
        change.values = change.values.map { _ in generator.symmetric(1) }
        let length = Float(change.norm)
        func distance(_ round: Int) throws -> Double {
            let wanted = AdapterState(
                layout: first.layout, values: zip(first.values, change.values).map { $0 + Float(round) * $1 / length })
            return try rig.state(afterRound: round).update(since: wanted).norm
        }
        let owed = try [1, 10, 20, 40].map(distance)
        #expect(owed[0] > 0.3 && owed[0] < 1)
        // What is owed stays bounded while the change grows to 40.
        #expect(owed.allSatisfy { $0 < 8 }, "\(owed)")
        #expect(owed[3] / 40 < 0.5 * owed[0], "\(owed)")
    }

    @Test(arguments: ["f32", "compeft:0.1", "int8"]) func roundsThatBringTheSameBytesCountEach(text: String) throws {
        // A client that has converged sends zeros again and again: as many contributions as rounds.
        let plan = try Self.plan(.ffaLoRA, text, feedback: text != "f32", clients: 2, rounds: 3)
        let rig = try Rig(plan)
        for name in ["a", "b"] { rig.start(name, WatchedStorage.inMemory(name), FormulaWork(name) { $0.weights.trained }) }
        try rig.run(["a", "b"])
        #expect(rig.service.federation.records.map(\.participants) == Array(repeating: ["a", "b"], count: 3))
    }

    @Test(arguments: [StrategyName.ffaLoRA, .fedit])
    func everyRoundsStateStaysThereWhereNothingIsLeftOut(strategy: StrategyName) throws {
        // No change at all: the downlink's remainder is zeros, as FFA-LoRA's first state is.
        var plan = Scenario.plan(strategy, clients: 1, rounds: 4)
        plan.compressDownlink = try codec("bf16")
        let rig = try Rig(plan)
        rig.start("a", WatchedStorage.inMemory("a"), FormulaWork("a") { $0.weights.trained })
        try rig.run(["a"])
        for round in 0...4 { #expect(try rig.state(afterRound: round) == rig.state(afterRound: 0)) }
    }

    // MARK: - FLoRA

    @Test func floraStacksWhatTheClientBeganWithPlusItsDecodedUpdate() throws {
        var plan = try Self.plan(.flora, "compeft:0.2", feedback: false, clients: 3, rounds: 1)
        plan.deadlineSeconds = 20
        let rig = try Rig(plan)
        let counts = ["a": 120, "b": 30, "c": 900]
        let ranks = ["a": 1, "b": 2, "c": 4]
        for name in ["a", "b", "c"] {
            rig.start(
                name, WatchedStorage.inMemory(name), FormulaWork(name, exampleCount: try #require(counts[name])),
                maximumRank: ranks[name])
        }
        for name in ["a", "b", "c"] { try rig.step(name) }
        for name in ["a", "b"] { try rig.stepUntilItWaits(name) }
        // The third trains for the second attempt, and begins with another A.
        try rig.passDeadline()
        #expect(rig.service.federation.attempt?.attempt == 2)
        try rig.run(["a", "b", "c"])
        #expect(rig.commits("c").map(\.attempt) == [2] && rig.commits("a").map(\.attempt) == [1])

        let stack = try #require(try rig.service.weights(afterRound: 1).correction)
        let total = Double(counts.values.reduce(0, +))
        for (index, map) in Scenario.maps.enumerated() {
            var expected = [Double](repeating: 0, count: map.outputs * map.inputs)
            for (name, rank) in ranks {
                let specification = try plan.specification(rank: rank, maps: Scenario.maps)
                let began = plan.derivedWeights(specification, round: 1, attempt: name == "c" ? 2 : 1, client: name).trained
                let update = try EncodedState.decode(
                    rig.uploaded(name, round: 1), layout: specification.trainedLayout, codecs: [plan.compress])
                let factors = zip(began.values, update.values).map { Double($0 + $1) }
                let (a, b) = (began.layout.offsets[2 * index], began.layout.offsets[2 * index + 1])
                let weight = Double(counts[name] ?? 0) / total * Double(specification.scale)
                for row in 0..<map.outputs {
                    for column in 0..<map.inputs {
                        for k in 0..<rank {
                            expected[row * map.inputs + column] +=
                                weight * factors[b + row * rank + k] * factors[a + k * map.inputs + column]
                        }
                    }
                }
            }
            #expect(stack.layout.tensors[2 * index].rank == 7)
            let (a, b) = (Array(stack.tensor(2 * index)), Array(stack.tensor(2 * index + 1)))
            var actual = [Double](repeating: 0, count: expected.count)
            for row in 0..<map.outputs {
                for column in 0..<map.inputs {
                    for k in 0..<7 {
                        actual[row * map.inputs + column] += Double(b[row * 7 + k]) * Double(a[k * map.inputs + column])
                    }
                }
            }
            let closeness = Closeness(actual, expected)
            #expect(closeness.isWithin(norm: 1e-6), "\(closeness)")
        }
    }

    // MARK: - The record

    @Test(arguments: ["f32", "compeft:0.1", "int8"])
    func theRecordsBytesAreTheFramesAndItsRatiosFollow(text: String) throws {
        var plan = try Self.plan(.fedit, text, feedback: false, clients: 3, rounds: 3)
        plan.compressDownlink = try codec(text == "f32" ? "f32" : "compeft:0.1")
        let rig = try Rig(plan)
        for name in ["a", "b", "c"] { rig.start(name, WatchedStorage.inMemory(name), FormulaWork(name)) }
        try rig.run(["a", "b", "c"])
        let stored = try #require(try rig.store.load())
        let layout = try plan.specification(rank: 4, maps: Scenario.maps).trainedLayout
        let all = rig.log.reduce(0) { $0 + $1.request.encoded().count + $1.reply.encoded().count }
        let kinds = stored.records.map(\.traffic).map { $0.uplink + $0.downlink + $0.oneTime + $0.control }
        #expect(kinds.reduce(0, +) == all, "all four kinds are all that was said")
        for record in stored.records {
            var up = 0
            var down = 0
            for exchange in rig.log {
                switch (exchange.request, exchange.reply) {
                case (.uploadChunk(let chunk), _) where Int(chunk.round) == record.round: up += exchange.request.encoded().count
                case (.commit(let commit), _) where Int(commit.round) == record.round: up += exchange.request.encoded().count
                case (_, .task(let task)):
                    if case .train(let train) = task.task, Int(train.round) == record.round {
                        down += exchange.reply.encoded().count
                    }
                case (_, .chunk(let chunk)):
                    let adapter = try #require(stored.adapters.first { $0.round == record.round - 1 })
                    let isOfRound = adapter.blobs.contains { $0.digest == chunk.digest } || adapter.delta?.digest == chunk.digest
                    if isOfRound { down += exchange.reply.encoded().count }
                default: break
                }
            }
            #expect(record.traffic.uplink == up && record.traffic.downlink == down, "round \(record.round)")
            let line = RunFolder.line(record, stored)
            #expect(line["uplink_bytes"]?.int == up && line["compress"]?.text == text)
            for (key, bytesEach) in [("uplink_ratio_bf16", 2), ("uplink_ratio_f32", 4)] {
                let wanted = Double(3 * layout.parameterCount * bytesEach) / Double(up)
                #expect(abs((line[key]?.double ?? 0) - wanted) < 1e-9)
            }
            // Before the first round everybody has what the seed gives: nothing is fetched.
            let fetched = record.round > 1 ? 3 * layout.parameterCount * 2 : 0
            let ratio = line["downlink_ratio_bf16"]?.double ?? 0
            #expect(abs(ratio - Double(fetched) / Double(down)) < 1e-9)
        }
    }
}
