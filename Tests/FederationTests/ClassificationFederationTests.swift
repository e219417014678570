/// Federations with a task's head: it starts from the seed, every client trains it, and every strategy averages it.

import Adapters
import Checkpoints
import ClientCore
import CoordinatorCore
import Plan
import Primitives
import TestSupport
import Testing
import UpdateCodec
import Wire

/// A client whose evaluation tells fixed counts.
private final class TellingWork: LocalWork {
    let inner: FormulaWork
    let counts: LabelCounts?
    let targetTokens: Int
    let exactMatches: Int?

    init(_ inner: FormulaWork, _ counts: LabelCounts?, targetTokens: Int = 4, exactMatches: Int? = nil) {
        self.inner = inner
        self.counts = counts
        self.targetTokens = targetTokens
        self.exactMatches = exactMatches
    }

    var exampleCount: Int { inner.exampleCount }
    var dataDigest: Digest { inner.dataDigest }
    var hasEvaluationData: Bool { true }
    func prepare(for plan: FederationPlan) throws(Failure) {}
    func train(
        _ assignment: TrainingAssignment, progress: (Int, Int) -> WorkInterruption?
    ) throws(WorkInterruption) -> TrainedResult { try inner.train(assignment, progress: progress) }
    func evaluate(_ weights: AdapterWeights, plan: FederationPlan) throws(Failure) -> EvaluationResult {
        EvaluationResult(
            lossSum: 3, targetTokens: targetTokens, examples: 4, exactMatches: exactMatches, labelCounts: counts)
    }
    func start(plan: FederationPlan, client: String, specification: AdapterSpecification) throws(Failure) -> AdapterState {
        try inner.start(plan: plan, client: client, specification: specification)
    }
}

/// Announces this plan to everybody, and admits everybody.
private final class CarelessCoordinator: ClientChannel {
    let plan: FederationPlan
    private(set) var later = 0

    init(_ plan: FederationPlan) { self.plan = plan }

    func request(_ request: Request, bulk: Bool) throws(Failure) -> Reply {
        switch request {
        case .inquire:
            return .announcement(
                Announcement(softwareVersion: Version.current, runID: "careless", plan: PlanCoding.encode(plan)))
        case .hello:
            return .welcome(
                Welcome(
                    softwareVersion: Version.current, runID: "careless", session: 1, rank: UInt32(plan.ranks[0]),
                    heartbeatSeconds: 10))
        default:
            later += 1
            throw Failure(.internalError, "nothing more is expected")
        }
    }
}

@Suite struct ClassificationFederationTests {
    static let labels = ["no", "unsure", "yes"]

    static func plan(_ strategy: StrategyName, clients: Int = 2, rounds: Int = 3) -> FederationPlan {
        var plan = Scenario.plan(strategy, clients: clients, rounds: rounds)
        plan.task = .classify
        plan.labels = labels
        plan.head = [LinearMap(name: "classifier", outputs: 3, inputs: 16)]
        if strategy == .flora { plan.ranks = [2, 4] }
        return plan
    }

    private func rig(_ plan: FederationPlan, noiseSeed: UInt64? = nil) throws -> (rig: Rig, work: [FormulaWork], names: [String])
    {
        let rig = try Rig(plan, noiseSeed: noiseSeed)
        let names = (0..<plan.minimumClients).map { "client-\($0)" }
        let work = names.enumerated().map { FormulaWork($1, exampleCount: [30, 10][$0 % 2]) }
        for (index, name) in names.enumerated() {
            rig.start(
                name, WatchedStorage.inMemory(name), work[index],
                maximumRank: plan.strategy == .flora ? plan.ranks[index % plan.ranks.count] : nil)
        }
        return (rig, work, names)
    }

    private func head(_ state: AdapterState) throws -> AdapterState { try #require(state.splittingHead().head) }

    @Test(arguments: StrategyName.allCases, ["f32", "bf16", "int8", "topk:0.5", "compeft:0.5"])
    func theHeadIsAveragedInEveryStrategyAndCodec(strategy: StrategyName, codec: String) throws {
        var plan = Self.plan(strategy)
        plan.compress = try UpdateCodec(parsing: codec)
        let (rig, work, names) = try rig(plan)
        try rig.run(names)
        let start = try #require(plan.derivedHead(try plan.specification(rank: plan.ranks[0], maps: Scenario.maps)))
        #expect(start.values.contains { $0 != 0 } && start.tensor(1).allSatisfy { $0 == 0 })
        #expect(try head(rig.service.weights(afterRound: 0).trained) == start)
        for round in 1...plan.rounds {
            let before = try head(rig.service.weights(afterRound: round - 1).trained)
            // Both clients were given the global head, whatever their rank.
            for work in work { #expect(try head(work.assignments[round - 1].weights.trained) == before, "round \(round)") }
            // What travelled, as the coordinator reads it.
            let sent = try names.enumerated().map { index, name in
                let rank = strategy == .flora ? plan.ranks[index] : plan.ranks[0]
                return try head(
                    EncodedState.decode(
                        rig.uploaded(name, round: round), layout: try rig.service.federation.layout(of: .update, rank: rank),
                        codecs: [plan.compress]))
            }
            let after = try head(rig.service.weights(afterRound: round).trained)
            let expected = before.values.indices.map { index in
                Double(before.values[index]) + 0.75 * Double(sent[0].values[index]) + 0.25 * Double(sent[1].values[index])
            }
            let closeness = Closeness(after.values.map(Double.init), expected)
            #expect(closeness.isWithin(ofLargest: 1e-6), "round \(round): \(closeness)")
            #expect(after != before)
            if codec == "f32" {
                // The weighted mean of what the clients trained.
                let trained = try work.map { try head($0.updates[round - 1]) }
                #expect(zip(sent, trained).allSatisfy { Closeness($0.values, $1.values).isWithin(ofLargest: 1e-5) })
            }
        }
    }

    @Test func aFLoRAHeadTravelsInEveryRoundAndItsCorrectionGrowsBesideIt() throws {
        let plan = Self.plan(.flora)
        let (rig, _, names) = try rig(plan)
        try rig.run(names)
        let stored = try #require(try rig.store.load())
        func kinds(_ round: Int) -> [StoredBlob.Kind]? { stored.adapters.first { $0.round == round }?.blobs.map(\.kind) }
        #expect(kinds(0) == [.state] && kinds(2) == [.state, .segment, .segment])
        #expect(kinds(3) == [.state, .segment, .segment, .segment])
        let headCount = 3 * 16 + 3
        // The first head is derived from the seed by everybody; each later one is fetched by two clients, beside the stack of
        // the round before.
        func values(_ round: Int) -> Int { stored.records[round - 1].traffic.downlinkValues }
        let stack = AdapterSpecification.stackLayout(maps: Scenario.maps, rank: 6).parameterCount
        #expect(values(1) == 0)
        #expect(values(2) == 2 * (headCount + stack))
        let weights = try rig.service.weights(afterRound: 3)
        #expect(weights.correction?.layout.tensors.map(\.rank) == [18, 18, 18, 18])
        #expect(exportedHead(weights: weights).map(\.map) == ["classifier"])
    }

    @Test(arguments: [StrategyName.fedit, .ffaLoRA, .fedSB])
    func clientLevelNoiseFallsOnTheHeadToo(strategy: StrategyName) throws {
        var plan = Self.plan(strategy, rounds: 1)
        (plan.privacy, plan.noiseMultiplier, plan.weighting, plan.clip) = (.client, 1, .uniform, 0.5)
        if strategy == .fedSB { plan.start = .xs }
        let rig = try Rig(plan, noiseSeed: 3)
        let names = ["client-0", "client-1"]
        for name in names { rig.start(name, WatchedStorage.inMemory(name), FormulaWork(name, norm: 4)) }
        try rig.run(names)
        let before = try rig.state(afterRound: 0)
        let change = try rig.state().update(since: before)
        // Noise of 0.25 on each value, over an average update of norm 0.5: a head without it would hardly move.
        let headChange = try head(change).values.map(Double.init)
        let deviation = (headChange.reduce(0) { $0 + $1 * $1 } / Double(headChange.count)).squareRoot()
        #expect(deviation > 0.15 && deviation < 0.4, "\(deviation)")
    }

    @Test func accuracyIsCombinedByExamplesAndMacroF1FromSummedCounts() throws {
        let plan = Self.plan(.fedit, rounds: 1)
        let rig = try Rig(plan)
        // 4 examples each; "unsure" is neither had nor told.
        let first = try #require(LabelCounts(correct: [2, 0, 1], predicted: [3, 0, 1], actual: [2, 0, 2]))
        let second = try #require(LabelCounts(correct: [0, 0, 1], predicted: [3, 0, 1], actual: [0, 0, 4]))
        rig.start("a", WatchedStorage.inMemory("a"), TellingWork(FormulaWork("a"), first))
        rig.start("b", WatchedStorage.inMemory("b"), TellingWork(FormulaWork("b"), second))
        try rig.run(["a", "b"])
        let stored = try #require(try rig.store.load())
        let line = RunFolder.line(try #require(stored.records.last), stored)
        #expect(line["eval_accuracy"]?.double == 0.5)
        let no = 2 * 2.0 / (6 + 2)
        let yes = 2 * 2.0 / (2 + 6)
        #expect(abs((line["eval_macro_f1"]?.double ?? 0) - (no + yes) / 2) < 1e-12)
    }

    @Test func countsThatAreNotOfThisRunsLabelsAreRefused() throws {
        for counts in [nil, LabelCounts(labelCount: 2), LabelCounts(labelCount: 3)] {
            let rig = try Rig(Self.plan(.fedit, clients: 1, rounds: 1))
            rig.start("a", WatchedStorage.inMemory("a"), TellingWork(FormulaWork("a"), counts))
            let failure = #expect(throws: Failure.self) { try rig.run(["a"]) }
            #expect(failure?.message.contains("labels") == true, "\(failure?.message ?? "")")
        }
    }

    @Test func aClassifiersEvaluationHasOneTargetAnExampleAndNoExactMatches() throws {
        let counts = try #require(LabelCounts(correct: [2, 0, 1], predicted: [3, 0, 1], actual: [2, 0, 2]))
        for (targets, matches) in [(5, nil), (4, 1)] as [(Int, Int?)] {
            let rig = try Rig(Self.plan(.fedit, clients: 1, rounds: 1))
            rig.start(
                "a", WatchedStorage.inMemory("a"),
                TellingWork(FormulaWork("a"), counts, targetTokens: targets, exactMatches: matches))
            let failure = #expect(throws: Failure.self) { try rig.run(["a"]) }
            #expect(failure?.message.contains("exact matches") == true, "\(failure?.message ?? "")")
        }
    }

    @Test func aCoordinatorThatAdmitsAClientWithAnotherBaseIsLeftBeforeItsPlanIsUsed() throws {
        func join(_ plan: FederationPlan) -> (failure: Failure?, channel: CarelessCoordinator) {
            let channel = CarelessCoordinator(plan)
            var client = FederatedClient(
                identity: ClientIdentity(
                    name: "a", baseDigest: Digest(of: [1]), tokenizerDigest: Digest(of: [2]), maximumRank: nil,
                    kernelPath: "scripted", maps: Scenario.maps),
                channel: channel, storage: WatchedStorage.inMemory("a"), work: FormulaWork("a"), nonce: 0)
            return (#expect(throws: Failure.self) { for _ in 0..<2 { _ = try client.step() } }, channel)
        }
        // Layouts of this head would leave the range of an integer.
        var plan = Self.plan(.fedit)
        plan.head = [LinearMap(name: "classifier", outputs: 3, inputs: .max)]
        for change in [
            { $0.baseDigest = Digest(of: [3]) }, { $0.tokenizerDigest = Digest(of: [3]) },
        ] as [(inout FederationPlan) -> Void] {
            var other = plan
            change(&other)
            let (failure, channel) = join(other)
            #expect(failure?.status == .protocolError && channel.later == 0, "\(failure?.message ?? "")")
        }
        let (failure, channel) = join(plan)
        #expect(failure?.message.contains("head") == true && channel.later == 0, "\(failure?.message ?? "")")
    }

    @Test func aPlanWhoseTaskCannotWorkIsRefusedBeforeItStarts() throws {
        let changes: [(String, (inout FederationPlan) -> Void)] = [
            ("at least 2", { $0.labels = ["one"] }), ("twice", { $0.labels = ["a", "b", "a"] }),
            ("is empty", { $0.labels = ["a", "", "b"] }),
            ("line break", { $0.labels = ["a", "b\nc", "d"] }), ("control character", { $0.labels = ["a", "b\u{1b}c", "d"] }),
            ("control character", { $0.labels = ["a", "b\u{85}", "d"] }),
            ("head", { $0.head = [LinearMap(name: "classifier", outputs: 3, inputs: 1 << 40)] }),
            ("head", { $0.head = [$0.head[0], $0.head[0]] }), ("exact-match", { $0.exactMatchTokens = 3 }),
            ("head", { $0.head = [] }), ("head", { $0.labels.append("more") }),
            ("--task classify", { $0.task = .causal }),
            ("--task classify", { ($0.task, $0.head) = (.causal, []) }),
        ]
        for (expected, change) in changes {
            var plan = Self.plan(.fedit)
            change(&plan)
            let failure = #expect(throws: Failure.self) { try plan.validate(maps: Scenario.maps) }
            #expect(failure?.status == .usage && failure?.message.contains(expected) == true, "\(failure?.message ?? "")")
        }
    }
}

@Suite struct LabelCountsTests {
    @Test func accuracyAndMacroF1AreThoseOfTheirDefinitions() throws {
        var counts = LabelCounts(labelCount: 4)
        #expect(counts.accuracy == nil && counts.macroF1 == nil)
        for (told, label) in [(0, 0), (0, 1), (1, 1), (1, 1), (0, 2)] { counts.add(predicted: told, actual: label) }
        #expect(counts.accuracy == 3.0 / 5)
        // Precision and recall: 1/3 and 1, 1 and 2/3, label 2 never told, label 3 absent from both and left out.
        let f1 = [2 * (1.0 / 3) / (4.0 / 3), 2 * (2.0 / 3) / (5.0 / 3), 0]
        #expect(abs(try #require(counts.macroF1) - f1.reduce(0, +) / 3) < 1e-15)
        #expect((counts + counts).accuracy == counts.accuracy && (counts + counts).macroF1 == counts.macroF1)
    }

    @Test func numbersThatNoEvaluationGivesAreRefused() {
        #expect(LabelCounts(correct: [1], predicted: [1], actual: [1]) != nil)
        #expect(LabelCounts(correct: [2], predicted: [1], actual: [2]) == nil)
        #expect(LabelCounts(correct: [0, 0], predicted: [1, 0], actual: [0, 2]) == nil)
        #expect(LabelCounts(correct: [0], predicted: [1, 0], actual: [1]) == nil)
        #expect(LabelCounts(correct: [0], predicted: [1 << 50], actual: [1 << 50]) == nil)
    }
}
