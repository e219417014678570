/// Differential privacy in whole federations: what is refused, what is released, what leaves a client, and who pays for it.

import Adapters
import Aggregation
import ClientCore
import CoordinatorCore
import CoordinatorStore
import Plan
import Primitives
import Privacy
import TestSupport
import Testing
import UpdateCodec
import Wire

@Suite struct PlanPrivacyTests {
    private static func plan(_ change: (inout FederationPlan) -> Void) -> FederationPlan {
        var plan = Scenario.plan(.fedit)
        plan.weighting = .uniform
        change(&plan)
        return plan
    }

    private static func example(_ change: (inout FederationPlan) -> Void = { _ in }) -> FederationPlan {
        plan {
            $0.privacy = .example
            $0.gradientClip = 0
            $0.epsilon = 3
            change(&$0)
        }
    }

    private static func client(_ change: (inout FederationPlan) -> Void = { _ in }) -> FederationPlan {
        plan {
            $0.privacy = .client
            $0.epsilon = 3
            change(&$0)
        }
    }

    private static func set<Value>(
        _ path: WritableKeyPath<FederationPlan, Value>, _ value: Value
    ) -> (inout FederationPlan) -> Void {
        { $0[keyPath: path] = value }
    }

    @Test func everythingThatCannotWorkHasItsSentence() throws {
        let compeft = UpdateCodec.compeft(density: 0.1)
        let sigma = try UpdateCodec(parsing: "compeft:0.1:sigma=1")
        let refusals: [(FederationPlan, String)] = [
            // Compression.
            (
                Self.plan {
                    $0.strategy = .flora; $0.compress = compeft; $0.errorFeedback = true
                }, "error-feedback is not possible with flora"
            ),
            (Self.plan { $0.errorFeedback = true }, "error-feedback is not possible with compress f32"),
            (
                Self.plan {
                    $0.compress = sigma; $0.errorFeedback = true
                }, "error-feedback is not possible with compress compeft:0.1:sigma=1"
            ),
            (Self.plan(Self.set(\.residualDecay, 1.5)), "residual-decay is 1.5: it is between 0 and 1"),
            (Self.plan(Self.set(\.residualDecay, -0.5)), "residual-decay is -0.5"),
            (Self.plan(Self.set(\.residualDecay, .nan)), "residual-decay is nan"),
            (
                Self.plan {
                    $0.strategy = .flora; $0.compressDownlink = compeft
                }, "compress-downlink is not possible with flora"
            ),
            (Self.plan(Self.set(\.compressDownlink, sigma)), "compress-downlink compeft:0.1:sigma=1 is not possible"),
            // Without privacy.
            (Self.plan(Self.set(\.epsilon, 1)), "epsilon means nothing without differential privacy"),
            (Self.plan(Self.set(\.noiseMultiplier, 1)), "noise-multiplier means nothing without"),
            (Self.plan(Self.set(\.clip, 2)), "clip means nothing without"),
            (Self.plan(Self.set(\.delta, 1e-6)), "delta means nothing without"),
            (Self.plan(Self.set(\.clientSamplingRate, 0.5)), "client-sampling-rate means nothing without"),
            (Self.plan(Self.set(\.clipQuantile, 0.5)), "clip-quantile means nothing without"),
            (Self.plan(Self.set(\.clipLearningRate, 0.5)), "clip-learning-rate means nothing without"),
            (Self.plan(Self.set(\.clipCountNoise, 0.5)), "clip-count-noise means nothing without"),
            (Self.plan(Self.set(\.publicCounts, true)), "public-counts means nothing without"),
            (Self.plan(Self.set(\.publicEvaluation, true)), "public-evaluation means nothing without"),
            // Of both kinds.
            (Self.example(Self.set(\.epsilon, nil)), "dp example has no strength"),
            (Self.client(Self.set(\.epsilon, nil)), "dp client has no strength"),
            (Self.client(Self.set(\.epsilon, 0)), "epsilon is 0.0: it is a positive number"),
            (Self.client(Self.set(\.epsilon, .infinity)), "epsilon is inf"),
            (Self.example(Self.set(\.epsilon, .nan)), "epsilon is nan"),
            (Self.client(Self.set(\.noiseMultiplier, 0)), "noise-multiplier is 0.0"),
            (Self.client(Self.set(\.noiseMultiplier, .infinity)), "noise-multiplier is inf"),
            (Self.client(Self.set(\.delta, 0)), "delta is 0.0"),
            (Self.example(Self.set(\.delta, 1)), "delta is 1.0"),
            (Self.example(Self.set(\.delta, .nan)), "delta is nan"),
            (Self.example(Self.set(\.clip, 0)), "clip is 0.0"),
            (Self.client(Self.set(\.clip, .infinity)), "clip is inf"),
            (Self.client(Self.set(\.strategy, .fedSB)), "fed-sb's start from a gradient"),
            (Self.example(Self.set(\.strategy, .fedSB)), "use --start xs"),
            // Example level.
            (Self.example(Self.set(\.gradientClip, 1)), "gradient-clip is 1.0: under dp example"),
            (Self.example(Self.set(\.weighting, .samples)), "weighting samples would tell each client's number of examples"),
            (Self.example(Self.set(\.packing, .bestFit)), "packing is best-fit: under dp example"),
            (Self.example(Self.set(\.clientSamplingRate, 0.5)), "client-sampling-rate belongs to dp client"),
            (Self.example(Self.set(\.clipQuantile, 0.5)), "clip-quantile belongs to dp client"),
            (Self.example(Self.set(\.clipLearningRate, 0.5)), "clip-learning-rate belongs to dp client"),
            (Self.example(Self.set(\.clipCountNoise, 0.5)), "clip-count-noise belongs to dp client"),
            // Client level.
            (
                Self.client {
                    $0.strategy = .flora; $0.ranks = [2]
                }, "dp client is not possible with flora"
            ),
            (Self.client(Self.set(\.weighting, .samples)), "weighting samples is not possible with dp client"),
            (Self.client(Self.set(\.clientsPerRound, 2)), "clients-per-round 2 is not possible with dp client"),
            (Self.client(Self.set(\.quorum, 2)), "quorum 2 is not possible with dp client"),
            (Self.client(Self.set(\.clientSamplingRate, 0)), "client-sampling-rate is 0.0"),
            (Self.client(Self.set(\.clientSamplingRate, 1.5)), "client-sampling-rate is 1.5"),
            (Self.client(Self.set(\.clientSamplingRate, .nan)), "client-sampling-rate is nan"),
            (Self.client(Self.set(\.publicCounts, true)), "public-counts means nothing to dp client"),
            (Self.client(Self.set(\.clipQuantile, 1)), "clip-quantile is 1.0"),
            (
                Self.client {
                    $0.clipQuantile = 0.5; $0.clipLearningRate = 0
                }, "clip-learning-rate is 0.0"
            ),
            (
                Self.client {
                    $0.clipQuantile = 0.5; $0.clipCountNoise = .infinity
                }, "clip-count-noise is inf"
            ),
            (
                Self.client {
                    $0.clipQuantile = 0.5; $0.clipCountNoise = -1
                }, "clip-count-noise is -1.0"
            ),
            (Self.client(Self.set(\.clipCountNoise, 1)), "clip-count-noise means nothing without --clip-quantile"),
            (Self.client(Self.set(\.clipLearningRate, 1)), "clip-learning-rate means nothing without --clip-quantile"),
        ]
        for (plan, sentence) in refusals {
            let failure = #expect(throws: Failure.self, "\(sentence)") { try plan.validate(maps: Scenario.maps) }
            #expect(
                failure?.status == .usage && failure?.message.contains(sentence) == true,
                "\(failure?.message ?? "") / \(sentence)")
        }
        for plan in [
            Self.example(), Self.client(),
            Self.example {
                $0.weighting = .samples; $0.publicCounts = true
            },
            Self.client {
                $0.clipQuantile = 0.5; $0.clipCountNoise = 3; $0.clipLearningRate = 0.1
            },
            Self.example(Self.set(\.strategy, .flora)),
            Self.client {
                $0.strategy = .fedSB; $0.start = .xs
            },
            Self.client {
                $0.compress = compeft; $0.errorFeedback = true; $0.compressDownlink = compeft
            },
        ] {
            try plan.validate(maps: Scenario.maps)
        }
    }

    @Test func whatCannotBeAffordedIsRefusedBeforeTheRun() throws {
        let refusals: [(FederationPlan, String)] = [
            (
                Self.client {
                    $0.epsilon = 0.01; $0.noiseMultiplier = 1
                }, "costs epsilon"
            ),
            (
                Self.client {
                    $0.epsilon = nil; $0.noiseMultiplier = 1e-200
                }, "gives no privacy that could be stated"
            ),
            (
                Self.client {
                    $0.noiseMultiplier = 1; $0.clipQuantile = 0.5; $0.clipCountNoise = 0.25
                }, "adaptive clipping with noise 0.25"
            ),
        ]
        for (plan, sentence) in refusals {
            var plan = plan
            try plan.validate(maps: Scenario.maps)
            let failure = #expect(throws: Failure.self) { try plan.settlePrivacy() }
            #expect(failure?.message.contains(sentence) == true, "\(failure?.message ?? "")")
        }
        var plan = Self.client()
        try plan.settlePrivacy()
        #expect(try #require(plan.clientEpsilon(afterRounds: plan.rounds)) <= 3)
        #expect(plan.roundsWithinBudget == plan.rounds)
    }
}

@Suite struct ClientPrivacyTests {
    private static let names = ["a", "b", "c", "d"]

    private static func plan(clients: Int = 4, rounds: Int = 1, _ strategy: StrategyName = .fedit) -> FederationPlan {
        var plan = Scenario.plan(strategy, clients: clients, rounds: rounds)
        plan.privacy = .client
        plan.weighting = .uniform
        if strategy == .fedSB { plan.start = .xs }
        plan.clip = 1
        plan.noiseMultiplier = 1
        plan.deadlineSeconds = 20
        return plan
    }

    /// A run of clients with updates of these norms, the silent ones never reporting; the last state.
    private func run(
        _ plan: FederationPlan, norms: [Double], silent: Set<String> = [], noiseSeed: UInt64? = 4
    ) throws -> Rig {
        let rig = try Rig(plan, noiseSeed: noiseSeed)
        let names = norms.indices.map { "client-\($0 + 100)" }
        for (name, norm) in zip(names, norms) {
            rig.start(name, WatchedStorage.inMemory(name), FormulaWork(name, norm: norm))
            try rig.step(name)
        }
        while rig.service.federation.phase != .finished {
            let round = rig.service.federation.currentRound
            for name in names where !silent.contains(name) { try rig.stepUntilItWaits(name) }
            if rig.service.federation.phase != .finished, rig.service.federation.currentRound == round { try rig.passDeadline() }
        }
        return rig
    }

    private func distance(_ left: AdapterState, _ right: AdapterState) -> Double { left.update(since: right).norm }

    @Test(arguments: [StrategyName.fedit, .ffaLoRA, .fedSB])
    func withHardlyAnyNoiseAndALargeClipItIsTheUniformAverage(strategy: StrategyName) throws {
        var private_ = Self.plan(rounds: 2, strategy)
        private_.noiseMultiplier = 1e-8
        private_.clip = 50
        var plain = private_
        plain.privacy = .none
        plain.noiseMultiplier = nil
        plain.clip = 1
        let norms = [0.5, 1, 2, 4]
        let (with, without) = (try run(private_, norms: norms), try run(plain, norms: norms))
        let closeness = Closeness(try with.state().values, try without.state().values)
        #expect(closeness.largestDifference < 1e-5, "\(closeness)")
        #expect(try with.state().update(since: with.state(afterRound: 0)).norm > 0.5)
    }

    @Test(arguments: [0.3, 1.0, 7.0, 1e6])
    func oneClientChangesTheReleasedSumByAtMostTheClip(norm: Double) throws {
        var plan = Self.plan()
        plan.clip = 0.7
        let norms = [0.2, 3, norm, 0.9]
        let all = try run(plan, norms: norms)
        let without = try run(plan, norms: norms, silent: ["client-102"])
        // The same key: the noise is the same and falls out.
        let change = distance(try all.state(), try without.state()) * plan.expectedClients
        #expect(change <= 0.7 * 1.001)
        #expect(abs(change - min(0.7, norm)) < 0.002, "\(change)")
        // Whatever it sends, also where others are clipped.
        let hostile = try run(plan, norms: [0.2, 3, 1e30, 0.9])
        #expect(distance(try hostile.state(), try without.state()) * 4 <= 0.7 * 1.001)
    }

    @Test func aggregatesOfNeighboursDifferByAtMostTheClipWhateverTheUpdates() throws {
        let layout = try Scenario.plan(.fedit).specification(rank: 4, maps: Scenario.maps).trainedLayout
        var generator = SeededGenerator(seed: 1, purpose: "neighbours")
        for trial in 0..<20 {
            let states = (0..<5).map { _ in
                let size = Float(trial) * 0.02
                return AdapterState(layout: layout, values: (0..<layout.parameterCount).map { _ in generator.symmetric(size) })
            }
            func release(_ skipped: Int?) throws -> AdapterState {
                var average = PrivateAverage(
                    onto: AdapterState(zeros: layout), expectedClients: 5, clip: 1, noiseMultiplier: 0.5, adaptation: nil,
                    key: .unsafeSeeded(UInt64(trial), name: "round"))
                for (index, state) in states.enumerated() where index != skipped {
                    try average.add(client: "client-\(index)", weight: 1, state: state)
                }
                return try average.finish()
            }
            let all = try release(nil)
            for skipped in 0..<5 { #expect(distance(all, try release(skipped)) * 5 <= 1.0001) }
        }
    }

    @Test func whenNobodyReportsNoiseIsPublishedOverTheFixedDenominator() throws {
        let plan = Self.plan(rounds: 2)
        let rig = try run(plan, norms: [1, 1, 1, 1], silent: ["client-100", "client-101", "client-102", "client-103"])
        #expect(rig.service.federation.records.map(\.participants) == [[], []])
        for round in 1...2 {
            let before = try rig.state(afterRound: round - 1)
            var noise = [Double](repeating: 0, count: before.values.count)
            let key = NoiseKey.unsafeSeeded(4, name: "coordinator").derived("noise", round: round).derived("sum")
            addGaussianNoise(to: &noise, standardDeviation: 1, key: key)
            let expected = zip(before.values, noise).map { Float(Double($0) + $1 / 4) }
            #expect(try rig.state(afterRound: round).values == expected)
        }
        // And among three of four, the denominator is four all the same.
        let some = try run(Self.plan(), norms: [0.5, 0.5, 0.5, 0.5], silent: ["client-103"])
        let none = try run(Self.plan(), norms: [1, 1, 1, 1], silent: Set((100...103).map { "client-\($0)" }))
        let sum = distance(try some.state(), try none.state()) * 4
        #expect(sum > 0.5 && sum < 1.5)
    }

    @Test func aRoundClosesAtItsDeadlineAndIsNeverRepeated() throws {
        let rig = try run(Self.plan(rounds: 3), norms: [1, 1, 1, 1], silent: ["client-101"])
        #expect(rig.service.federation.records.map(\.attempts) == [1, 1, 1])
        #expect(rig.service.federation.records.allSatisfy { $0.participants == ["client-100", "client-102", "client-103"] })
        #expect(rig.now >= .seconds(63), "each round waited for its deadline")
        let all = try run(Self.plan(rounds: 3), norms: [1, 1, 1, 1])
        #expect(all.now == .zero, "with all drawn there, nothing waits")
    }

    /// Whom each round draws, with nobody reporting.
    private func draws(_ noiseSeed: UInt64?, clients: Int, rounds: Int, rate: Double) throws -> (drawn: [[String]], rig: Rig) {
        var plan = Self.plan(clients: clients, rounds: rounds)
        plan.clientSamplingRate = rate
        plan.noiseMultiplier = 8
        plan.ranks = [1]
        let rig = try Rig(plan, noiseSeed: noiseSeed)
        for index in 0..<clients {
            let name = "client-\(100 + index)"
            rig.start(name, WatchedStorage.inMemory(name), FormulaWork(name))
            try rig.step(name)
        }
        var drawn: [[String]] = []
        while let attempt = rig.service.federation.attempt {
            drawn.append(attempt.selected)
            try rig.passDeadline()
        }
        return (drawn, rig)
    }

    @Test func clientsAreDrawnIndependentlyWithTheirProbability() throws {
        let (clients, rounds, rate) = (30, 60, 0.3)
        let drawn = try draws(1, clients: clients, rounds: rounds, rate: rate).drawn
        #expect(drawn.count == rounds)
        let total = Double(drawn.reduce(0) { $0 + $1.count })
        let mean = Double(clients * rounds) * rate
        #expect(abs(total - mean) < 5 * (mean * (1 - rate)).squareRoot(), "\(total) of \(mean)")
        // Each client by itself, and the number of clients in a round as a binomial has it.
        for index in 0..<clients {
            let count = drawn.count { $0.contains("client-\(100 + index)") }
            #expect(abs(Double(count) - Double(rounds) * rate) < 5 * (Double(rounds) * rate * (1 - rate)).squareRoot())
        }
        let sizes = drawn.map { Double($0.count) }
        let variance = sizes.reduce(0) { $0 + ($1 - Double(clients) * rate) * ($1 - Double(clients) * rate) } / Double(rounds)
        #expect(variance > 2.5 && variance < 13, "\(variance), where a binomial has 6.3")
    }

    @Test func drawsFollowFromTheSecretAlone() throws {
        func drawn(_ seed: UInt64?) throws -> [[String]] { try draws(seed, clients: 12, rounds: 8, rate: 0.5).drawn }
        #expect(try drawn(1) == drawn(1))
        #expect(try drawn(1) != drawn(2))
        #expect(try drawn(nil) != drawn(nil), "without a seed no two runs are alike")
    }

    @Test func aRoundThatDrewNobodyPublishesNoise() throws {
        let (drawn, rig) = try draws(3, clients: 2, rounds: 30, rate: 0.05)
        #expect(drawn.contains([]) && rig.service.federation.records.count == 30)
        let states = try (0...30).map { try rig.state(afterRound: $0).digest }
        #expect(Set(states).count == 31)
    }

    @Test func theClipMovesToItsQuantile() throws {
        var plan = Self.plan(clients: 20, rounds: 30)
        plan.noiseMultiplier = 0.2
        plan.clip = 10
        plan.clipQuantile = 0.5
        plan.clipLearningRate = 0.3
        plan.ranks = [1]
        // Norms from 0.1 to 10, their median 1.
        let norms = (0..<20).map { index in
            var norm = 0.1
            for _ in 0..<index { norm *= 1.274 }
            return norm
        }
        let rig = try run(plan, norms: norms)
        let clips = try rig.service.federation.records.map { try #require($0.clip) }
        #expect(clips[0] == 10 && clips[1] < 10)
        let last = try #require(clips.last)
        let share = Double(norms.count { $0 <= last }) / 20
        #expect(share >= 0.35 && share <= 0.65, "\(share) of the norms are within \(last)")
        // A clip that does not adapt stays.
        plan.clipQuantile = nil
        plan.clipLearningRate = 0.2
        #expect(try run(plan, norms: norms).service.federation.records.allSatisfy { $0.clip == 10 })
    }

    @Test func epsilonIsTheAccountantsAndNeverFalls() throws {
        var plan = Self.plan(rounds: 5)
        plan.clientSamplingRate = 0.5
        let records = try run(plan, norms: [1, 1, 1, 1]).service.federation.records
        let spent = try records.map { try #require($0.epsilon) }
        for (index, epsilon) in spent.enumerated() {
            let charge = PrivacyCharge(samplingRate: 0.5, noiseMultiplier: 1, steps: index + 1)
            #expect(epsilon == PrivacyAccountant.epsilon(of: [charge], delta: plan.delta))
            #expect(index == 0 || epsilon >= spent[index - 1])
        }
    }

    @Test func aRunEndsWithTheReasonWhenItsBudgetIsSpent() throws {
        var plan = Self.plan(rounds: 10)
        plan.noiseMultiplier = 2
        plan.epsilon =
            PrivacyAccountant.epsilon(
                of: [PrivacyCharge(samplingRate: 1, noiseMultiplier: 2, steps: 3)], delta: plan.delta) * 1.01
        let rig = try run(plan, norms: [1, 1, 1, 1])
        let budget = try #require(plan.epsilon)
        let records = rig.service.federation.records
        #expect(records.count == 3)
        #expect(try #require(records.last?.epsilon) <= budget)
        #expect(try #require(plan.clientEpsilon(afterRounds: 4)) > budget)
        let reason = try rig.stepUntilItWaits("client-100")
        #expect(reason.contains("round 4 of 10 is refused") && reason.contains("privacy budget of epsilon \(budget)"))
        // A new process on the same state does not go on either.
        let again = try CoordinatorService(
            store: rig.store, plan: rig.plan, maps: Scenario.maps,
            start: try RunStart(plan: rig.plan, maps: Scenario.maps, initial: nil), newRunID: "other",
            noise: CoordinatorNoise(seed: 1), at: .zero, stopwatch: { .zero })
        #expect(again.federation.phase == .finished && again.federation.endReason == reason)
        // Nor with another word on whether its noise protects anybody.
        let failure = #expect(throws: Failure.self) {
            _ = try CoordinatorService(
                store: rig.store, plan: rig.plan, maps: Scenario.maps,
                start: try RunStart(plan: rig.plan, maps: Scenario.maps, initial: nil), newRunID: "other", at: .zero,
                stopwatch: { .zero })
        }
        #expect(failure?.status == .badConfiguration && failure?.message.contains("--unsafe-dp-seed") == true)
    }

    @Test(arguments: [StrategyName.fedit, .fedSB])
    func aKillAfterAnyWriteKeepsTheSecretAndTheBits(strategy: StrategyName) throws {
        var plan = Self.plan(clients: 3, rounds: 3, strategy)
        plan.clientSamplingRate = 0.6
        plan.clipQuantile = 0.5
        plan.compress = .compeft(density: 0.2)
        plan.errorFeedback = true
        let reference = try Scenario.run(plan, store: MemoryFederationStore(), unsafeSeed: 9)
        var writes = 0
        while true {
            let store = MemoryFederationStore()
            let folder = TemporaryFolder()
            do {
                _ = try Scenario.run(plan, store: DyingStore(store, after: writes), folder: folder.path, unsafeSeed: 9)
                break
            } catch { #expect("\(error)" == "killed") }
            let kept = try store.load()?.noise
            // The new process has a key of its own, and uses the stored one.
            let seed: UInt64 = kept == nil ? 9 : 10
            #expect(
                try Scenario.run(plan, store: store, folder: folder.path, unsafeSeed: seed) == reference,
                "killed after \(writes) writes")
            if let kept { #expect(try store.load()?.noise == kept) }
            writes += 1
        }
        #expect(writes > 10)
    }

    @Test func theSecretIsNowhereInWhatIsSentOrWritten() throws {
        var plan = Self.plan(rounds: 2)
        plan.clientSamplingRate = 0.9
        let rig = try run(plan, norms: [1, 1, 1, 1], noiseSeed: nil)
        let stored = try #require(try rig.store.load())
        let key = try #require(stored.noise).key.bytes
        for exchange in rig.log {
            let bytes = exchange.reply.encoded()
            #expect(
                bytes.count < 32 || !(0...bytes.count - 32).contains { bytes[$0] == key[0] && Array(bytes[$0..<$0 + 32]) == key })
        }
        let folder = TemporaryFolder()
        try RunFolder(path: folder.path).writeMetrics(stored)
        #expect(!"\(stored)".contains("\(key[0]), \(key[1]), \(key[2])"), "a log line would tell it")
    }

    @Test func resultsTellNeitherParticipantsNorLossesNorCounts() throws {
        var plan = Self.plan(rounds: 2)
        plan.clientSamplingRate = 0.9
        let rig = try Rig(plan, noiseSeed: 1)
        let works = Self.names.map { FormulaWork($0) }
        for (name, work) in zip(Self.names, works) {
            work.hasEvaluationData = true
            rig.start(name, WatchedStorage.inMemory(name), work)
        }
        try rig.run(Self.names)
        let stored = try #require(try rig.store.load())
        #expect(stored.evaluations.isEmpty && works.allSatisfy { $0.evaluations == 0 })
        #expect(stored.members.allSatisfy { $0.exampleCount == nil && !$0.hasEvaluationData })
        #expect(stored.contributions.allSatisfy { $0.exampleCount == nil && $0.trainLoss == nil && $0.targetTokens == nil })
        for record in stored.records {
            #expect(record.trainLoss == nil)
            let line = RunFolder.line(record, stored)
            let secret = [
                "participants", "train_loss", "eval_loss", "eval_exact_match", "uplink_bytes", "downlink_bytes", "one_time_bytes",
                "control_bytes", "uplink_ratio_bf16", "uplink_ratio_f32", "downlink_ratio_bf16", "downlink_ratio_f32",
            ]
            for key in secret { #expect(line[key]?.isNull == true, "\(key)") }
            #expect(line["epsilon"]?.double == record.epsilon && line["clip"]?.double == 1)
            #expect(line["privacy_guarantee"]?.text == RunFolder.unsafeNotice)
            #expect(RunFolder.line(record, rig.service.federation.summary)["privacy_guarantee"]?.text == RunFolder.unsafeNotice)
        }
        // With public evaluation data, evaluations are told and nothing else.
        plan.publicEvaluation = true
        let open = try Rig(plan, noiseSeed: 1)
        for name in Self.names {
            let work = FormulaWork(name)
            work.hasEvaluationData = name == "a"
            open.start(name, WatchedStorage.inMemory(name), work)
        }
        try open.run(Self.names)
        let line = RunFolder.line(try #require(open.service.federation.records.last), try #require(try open.store.load()))
        #expect(
            line["eval_loss"]?.double == 3.0 / 7 && line["participants"]?.isNull == true && line["train_loss"]?.isNull == true)
    }

    @Test func whatAClientTellsUnaskedIsNotKept() throws {
        let plan = Self.plan(clients: 1)
        let rig = try Rig(plan, noiseSeed: 1)
        let hello = Hello(
            softwareVersion: "test", name: "x", secret: [UInt8](repeating: 1, count: 32), baseDigest: plan.baseDigest,
            tokenizerDigest: plan.tokenizerDigest, maximumRank: nil, exampleCount: 12, hasEvaluationData: true, sessionNonce: 0,
            kernelPath: "test")
        func ask(_ request: Request) throws -> Reply {
            try Reply(decoding: rig.service.handle(request.encoded(), at: .zero, newSession: 55))
        }
        guard case .welcome = try ask(.hello(hello)) else { return #expect(Bool(false)) }
        let layout = try plan.specification(rank: 4, maps: Scenario.maps).trainedLayout
        let bytes = EncodedState.encode(AdapterState(zeros: layout))
        _ = try ask(
            .uploadChunk(
                UploadChunk(
                    session: 55, kind: .update, round: 1, digest: Digest(of: bytes), index: 0, count: 1,
                    totalBytes: UInt64(bytes.count), bytes: bytes)))
        _ = try ask(
            .commit(
                Commit(
                    session: 55, kind: .update, round: 1, attempt: 1, digest: Digest(of: bytes), totalBytes: UInt64(bytes.count),
                    exampleCount: 12, training: TrainingReport(trainLoss: 2, targetTokens: 9, trainSeconds: 1))))
        let stored = try #require(try rig.store.load())
        #expect(stored.members.map(\.exampleCount) == [nil] && stored.members.map(\.hasEvaluationData) == [false])
        #expect(stored.records.map(\.trainLoss) == [nil] && stored.contributions.map(\.exampleCount) == [nil])
        #expect(stored.finished, "nobody waits for an evaluation that may not be told")
    }
}

@Suite struct ExamplePrivacyTests {
    private static let names = ["a", "b"]

    private static func plan(rounds: Int = 3, _ strategy: StrategyName = .fedit) -> FederationPlan {
        var plan = Scenario.plan(strategy, clients: 2, rounds: rounds)
        plan.privacy = .example
        plan.weighting = .uniform
        plan.gradientClip = 0
        plan.noiseMultiplier = 1
        plan.localSteps = 4
        plan.deadlineSeconds = 20
        return plan
    }

    private static func charge(_ plan: FederationPlan, examples: Int) -> PrivacyCharge {
        PrivacyCharge(samplingRate: Double(plan.batchSize) / Double(examples), noiseMultiplier: 1, steps: plan.localSteps)
    }

    @Test(arguments: [false, true]) func nothingThatWasComputedFromTheDataLeavesBesideTheUpdate(isPublic: Bool) throws {
        var plan = Self.plan()
        plan.publicCounts = isPublic
        plan.publicEvaluation = isPublic
        let rig = try Rig(plan)
        for name in Self.names {
            let work = FormulaWork(name)
            work.hasEvaluationData = true
            rig.start(name, WatchedStorage.inMemory(name), work)
        }
        try rig.run(Self.names)
        var (hellos, reports) = (0, 0)
        for exchange in rig.log {
            switch exchange.request {
            case .hello(let hello):
                hellos += 1
                #expect(hello.exampleCount == (isPublic ? 100 : nil) && hello.hasEvaluationData == isPublic)
            case .commit(let commit):
                #expect(commit.exampleCount == (isPublic ? 100 : nil) && commit.training == nil)
            case .reportEvaluation: reports += 1
            case .heartbeat(let heartbeat): #expect(heartbeat.totalSteps == 1)
            default: break
            }
        }
        #expect(hellos == 2 && (reports > 0) == isPublic)
        let stored = try #require(try rig.store.load())
        #expect(stored.records.allSatisfy { $0.trainLoss == nil && $0.participants == Self.names && $0.epsilon == nil })
        #expect(stored.evaluations.isEmpty != isPublic)
        #expect(stored.members.allSatisfy { $0.exampleCount == (isPublic ? 100 : nil) })
    }

    @Test func theLedgerIsChargedBeforeTheFirstByteLeavesAndOnceForAllRepetitions() throws {
        let plan = Self.plan()
        let rig = try Rig(plan)
        let storage = WatchedStorage.inMemory("a")
        var events: [String] = []
        storage.observer = { if $0 != "blob" { events.append($0) } }
        rig.start("a", storage, FormulaWork("a"))
        rig.start("b", WatchedStorage.inMemory("b"), FormulaWork("b"))
        var losses = 0
        var epsilon = 0.0
        rig.intercept = { (client, request) throws(Failure) in
            guard client == "a" else { return }
            let spent = try storage.ledger().epsilon(delta: plan.delta)
            #expect(spent >= epsilon, "what is spent stays spent")
            epsilon = spent
            switch request {
            case .uploadChunk(let chunk):
                events.append("upload")
                let paid = try storage.ledger().entries.count
                #expect(paid == Int(chunk.round), "paid for before it leaves")
            case .commit where losses % 3 != 2:
                losses += 1
                throw Failure(.unavailable, "lost")
            case .commit: losses += 1
            default: break
            }
        }
        while rig.service.federation.phase != .finished {
            do throws(Failure) { try rig.run(Self.names) } catch { #expect(error.message == "lost") }
        }
        // Charged, kept, sent, sent again twice, acknowledged.
        #expect(
            events == Array(repeating: ["ledger", "record", "upload", "upload", "upload", "record"], count: 3).flatMap { $0 })
        let ledger = try storage.ledger()
        #expect(ledger.entries.map(\.charge) == Array(repeating: Self.charge(plan, examples: 100), count: 3))
        #expect(Set(ledger.entries.map(\.id)).count == 3)
    }

    @Test func aClientWhoseBudgetIsSpentDeclinesBeforeItTellsAnything() throws {
        let plan = Self.plan()
        let rig = try Rig(plan)
        let first = PrivacyAccountant.epsilon(of: [Self.charge(plan, examples: 100)], delta: plan.delta)
        rig.start("a", WatchedStorage.inMemory("a"), FormulaWork("a"), privacy: ClientPrivacy(maximumEpsilon: first * 0.9))
        let failure = #expect(throws: Failure.self) { try rig.step("a") }
        #expect(failure?.status == .refused)
        #expect(failure?.message.contains("this client declines") == true && failure?.message.contains("--max-epsilon") == true)
        #expect(rig.log.count == 1)
        guard case .inquire? = rig.log.first?.request else { return #expect(Bool(false)) }
    }

    @Test func aBudgetDeclinesARunThatAddsNoNoiseHereAndALooserDelta() throws {
        var open = Self.plan()
        (open.privacy, open.noiseMultiplier, open.weighting) = (.none, nil, .samples)
        var loose = Self.plan()
        loose.delta = 0.9
        for (plan, word) in [(open, "no noise"), (loose, "--max-delta")] {
            let rig = try Rig(plan)
            rig.start("a", WatchedStorage.inMemory("a"), FormulaWork("a"), privacy: ClientPrivacy(maximumEpsilon: 100))
            let failure = #expect(throws: Failure.self) { try rig.step("a") }
            #expect(failure?.status == .refused && failure?.message.contains(word) == true, "\(word)")
            #expect(rig.log.count == 1)
        }
    }

    /// Tasks that the plan rules out are not done, whoever asks.
    @Test func aClientDoesNothingThatThePlanRulesOut() throws {
        final class Hostile: ClientChannel {
            let plan: FederationPlan
            let task: Wire.Task
            var later: [Request] = []
            init(_ plan: FederationPlan, _ task: Wire.Task) { (self.plan, self.task) = (plan, task) }
            func request(_ request: Request, bulk: Bool) throws(Failure) -> Reply {
                switch request {
                case .inquire: return .announcement(Announcement(softwareVersion: "x", runID: "r", plan: PlanCoding.encode(plan)))
                case .hello:
                    return .welcome(
                        Welcome(softwareVersion: "x", runID: "r", session: 1, rank: UInt32(plan.ranks[0]), heartbeatSeconds: 1))
                case .poll: return .task(TaskReply(lastContribution: .none, task: task))
                default:
                    later.append(request)
                    return .acknowledged
                }
            }
        }
        for task in [Wire.Task.start(StartTask(rank: 4)), .evaluate(EvaluateTask(round: 0, blobs: [], derivedDigest: nil))] {
            let plan = Self.plan()
            let channel = Hostile(plan, task)
            var client = FederatedClient(
                identity: ClientIdentity(
                    name: "a", baseDigest: plan.baseDigest, tokenizerDigest: plan.tokenizerDigest, maximumRank: nil,
                    kernelPath: "test", maps: Scenario.maps),
                channel: channel, storage: WatchedStorage.inMemory("a"), work: FormulaWork("a"), nonce: 1)
            _ = try client.step()
            let failure = #expect(throws: Failure.self) { _ = try client.step() }
            #expect(failure?.status == .protocolError && failure?.message.contains("rules out") == true)
            #expect(channel.later.isEmpty)
        }
    }

    @Test func aBudgetForOneRoundIsOneRoundAlsoAfterARestart() throws {
        let plan = Self.plan()
        let rig = try Rig(plan)
        let first = PrivacyAccountant.epsilon(of: [Self.charge(plan, examples: 100)], delta: plan.delta)
        let policy = ClientPrivacy(maximumEpsilon: first * 1.001)
        let storage = WatchedStorage.inMemory("a")
        let work = FormulaWork("a")
        rig.start("a", storage, work, privacy: policy)
        rig.start("b", WatchedStorage.inMemory("b"), FormulaWork("b"))
        // Killed after it has paid for the round and before it is sent: what is paid for is sent by the next process.
        rig.intercept = { (client, request) throws(Failure) in
            if client == "a", case .uploadChunk = request { throw Failure(.unavailable, "lost") }
        }
        #expect(throws: Failure.self) { try rig.run(Self.names) }
        #expect(try storage.ledger().entries.count == 1)
        rig.intercept = { (_, _) throws(Failure) in }
        rig.start("a", storage, work, privacy: policy)
        let failure = #expect(throws: Failure.self) { try rig.run(Self.names) }
        #expect(failure?.status == .refused && failure?.message.contains("round 2") == true)
        #expect(rig.service.federation.records.map(\.participants) == [Self.names], "the first round counted")
        #expect(work.assignments.map(\.round) == [1] && rig.uploaded("a", round: 2).isEmpty)
        #expect(try storage.ledger().entries.count == 1)
        // What it says when it goes does not tell how much was spent.
        rig.leave("a", reason: failure?.message ?? "")
        guard case .leave(let leave)? = rig.log.last?.request else { return #expect(Bool(false)) }
        #expect(leave.reason.isEmpty)
        // And once more: it joins, and still sends nothing.
        rig.start("a", storage, work, privacy: policy)
        #expect(throws: Failure.self) { try rig.stepUntilItWaits("a") }
        #expect(rig.uploaded("a", round: 2).isEmpty)
        // A new run on the same data is declined at once.
        let other = try Rig(plan, runID: "other")
        other.start("a", storage, work, privacy: policy)
        #expect(throws: Failure.self) { try other.step("a") }
        #expect(other.log.count == 1)
    }

    @Test func aClientThatDropsOutChangesNothingForTheOthers() throws {
        func ledger(_ dropsOut: Bool) throws -> PrivacyLedger {
            var plan = Self.plan()
            plan.quorum = 1
            let rig = try Rig(plan)
            let storage = WatchedStorage.inMemory("b")
            rig.start("a", WatchedStorage.inMemory("a"), FormulaWork("a"))
            rig.start("b", storage, FormulaWork("b"), privacy: ClientPrivacy(unsafeSeed: 1))
            try rig.run(Self.names, untilRound: 2)
            while rig.service.federation.phase != .finished {
                let round = rig.service.federation.currentRound
                if !dropsOut { try rig.stepUntilItWaits("a") }
                try rig.stepUntilItWaits("b")
                if rig.service.federation.phase != .finished, rig.service.federation.currentRound == round {
                    try rig.passDeadline()
                }
            }
            return try storage.ledger()
        }
        #expect(try ledger(true).entries.map(\.charge) == ledger(false).entries.map(\.charge))
    }

    @Test func noiseIsTheSameForTheSameWorkAndNewForAnyOther() throws {
        let plan = Self.plan(rounds: 2)
        /// Trains, is killed before anything is kept, and trains again, perhaps on other data.
        func keys(otherData: Bool) throws -> (keys: [NoiseKey], entries: Int) {
            let rig = try Rig(plan)
            let storage = WatchedStorage.inMemory("a")
            let work = FormulaWork("a")
            rig.start("a", storage, work)
            rig.start("b", WatchedStorage.inMemory("b"), FormulaWork("b"))
            // The given state and the ledger are written, then it dies, before the record.
            storage.writesLeft = 2
            #expect(throws: Failure.self) { try rig.run(Self.names) }
            storage.writesLeft = .max
            if otherData { work.dataDigest = Digest(of: [77]) }
            rig.start("a", storage, work)
            try rig.run(Self.names)
            return (work.assignments.compactMap(\.privacy).map(\.key), try storage.ledger().entries.count)
        }
        let (same, entries) = try keys(otherData: false)
        #expect(same.count == 3 && same[0] == same[1] && same[1] != same[2] && entries == 2)
        let (other, more) = try keys(otherData: true)
        #expect(other.count == 3 && other[0] != other[1] && more == 3, "other data are paid for anew")
        #expect(same[0] != other[0], "no two clients share a secret")
    }

    @Test func everyClientSolvesItsOwnNoiseForAllRoundsAtWorst() throws {
        var plan = Self.plan()
        plan.noiseMultiplier = nil
        plan.epsilon = 4
        let rig = try Rig(plan)
        let works = [FormulaWork("a", exampleCount: 40), FormulaWork("b", exampleCount: 4000)]
        let storages = Self.names.map { WatchedStorage.inMemory($0) }
        for index in 0..<2 { rig.start(Self.names[index], storages[index], works[index]) }
        try rig.run(Self.names)
        for (work, storage) in zip(works, storages) {
            let training = try #require(work.assignments.first?.privacy)
            #expect(training.samplingRate == Double(plan.batchSize) / Double(work.exampleCount))
            #expect(training.expectedBatchSize == plan.batchSize && training.clip == plan.clip)
            let spent = try storage.ledger().epsilon(delta: plan.delta)
            #expect(spent <= 4 && spent > 3.8, "\(spent)")
        }
        let noise = works.compactMap { $0.assignments.first?.privacy?.noiseMultiplier }
        #expect(noise.count == 2 && noise[0] > noise[1])
    }
}
