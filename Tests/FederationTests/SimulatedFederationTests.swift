/// Whole federations with scripted clients: what a run stores, and that a kill anywhere changes nothing.

import Adapters
import CoordinatorCore
import CoordinatorStore
import Plan
import Primitives
import Simulation
import TestSupport
import Testing

@Suite struct SimulatedFederationTests {
    @Test(arguments: StrategyName.allCases)
    func everyRoundIsRecordedWithItsParticipantsAndEvaluations(strategy: StrategyName) throws {
        let store = MemoryFederationStore()
        var plan = Scenario.plan(strategy)
        plan.exactMatchTokens = 4
        _ = try Scenario.run(plan, store: store)
        let stored = try #require(try store.load())
        #expect(stored.finished)
        #expect(stored.records.map(\.round) == [1, 2, 3])
        #expect(stored.records.allSatisfy { $0.participants.count == 4 && $0.attempts == 1 })
        #expect(stored.adapters.map(\.round) == [0, 1, 2, 3])
        #expect(stored.evaluations.map(\.round) == [0, 1, 2, 3])
        #expect(stored.contributions.count == 12)
        #expect(stored.contributions.allSatisfy { $0.counted == true })
        for record in stored.records {
            #expect(record.traffic.uplink > 0 && record.traffic.downlink > 0 && record.traffic.control > 0)
            #expect((record.traffic.oneTime > 0) == (strategy == .fedSB && record.round == 1))
        }
    }

    @Test(arguments: StrategyName.allCases)
    func bothStoresGiveTheSameBits(strategy: StrategyName) throws {
        let plan = Scenario.plan(strategy)
        let inMemory = try Scenario.run(plan, store: MemoryFederationStore())
        let path = Scenario.temporaryFile("both-\(strategy.rawValue).sqlite")
        #expect(try Scenario.run(plan, store: SQLiteFederationStore(path: path)) == inMemory)
    }

    @Test(arguments: StrategyName.allCases)
    func aKillAfterAnyWriteAndANewStartGiveTheSameBits(strategy: StrategyName) throws {
        let plan = Scenario.plan(strategy, clients: 3, rounds: 2)
        let reference = try Scenario.run(plan, store: MemoryFederationStore())
        var writes = 0
        while true {
            let store = MemoryFederationStore()
            let killed: Bool
            do {
                _ = try Scenario.run(plan, store: DyingStore(store, after: writes))
                killed = false
            } catch {
                #expect("\(error)" == "killed", "after \(writes) writes")
                killed = true
            }
            guard killed else { break }
            #expect(try Scenario.run(plan, store: store) == reference, "killed after \(writes) writes")
            writes += 1
        }
        #expect(writes > 10)
    }

    @Test func aSampleOfClientsIsSelectedAndDiffersBetweenRounds() throws {
        var plan = Scenario.plan(.fedit, clients: 8, rounds: 6)
        plan.clientsPerRound = 3
        let store = MemoryFederationStore()
        _ = try Scenario.run(plan, store: store)
        let records = try #require(try store.load()).records
        #expect(records.allSatisfy { $0.participants.count == 3 && $0.participants == $0.participants.sorted() })
        #expect(Set(records.map(\.participants)).count > 1)
    }

    @Test func fedSBBytesDoNotDependOnTheMatrices() throws {
        let small = Scenario.maps
        let specification = try Scenario.plan(.fedSB).specification(rank: 4, maps: small)
        #expect(specification.trainedLayout.parameterCount == small.count * 16)
    }

    @Test func weightingByClientsAndBySamplesDiffer() throws {
        var plan = Scenario.plan(.fedSB)
        let samples = try Scenario.run(plan, store: MemoryFederationStore())
        plan.weighting = .uniform
        #expect(try Scenario.run(plan, store: MemoryFederationStore()) != samples)
    }

    @Test func theCorrectionIsTruncatedAtItsCapAndTheErrorIsRecorded() throws {
        var plan = Scenario.plan(.flora, clients: 4, rounds: 3)
        plan.rankCap = 12
        let store = MemoryFederationStore()
        _ = try Scenario.run(plan, store: store)
        let adapters = try #require(try store.load()).adapters
        // Ranks 1, 2, 4 and 1 make 8 a round: the second round passes the cap.
        #expect(adapters[1].blobs.map(\.rank) == [8] && adapters[1].truncationError == nil)
        #expect(adapters[2].blobs.map(\.rank) == [12])
        let error = try #require(adapters[2].truncationError)
        #expect(error > 0 && error < 1)
    }

    @Test func aRankCapThatCutsIsToldBeforeTheRun() throws {
        // Ranks 1, 2, 4 and 1 make 8 a round, beside matrices whose smaller sides are 16.
        var plan = Scenario.plan(.flora, clients: 4, rounds: 5)
        plan.rankCap = 12
        let note = try #require(try plan.rankCapNote(maps: Scenario.maps))
        #expect(note.contains("rank 8: from round 2 on") && note.contains("--rank-cap 32 keeps it exact"))
        plan.rankCap = 16
        #expect(try plan.rankCapNote(maps: Scenario.maps) == nil)
        (plan.rankCap, plan.rounds) = (8, 1)
        #expect(try plan.rankCapNote(maps: Scenario.maps) == nil)
        #expect(try Scenario.plan(.fedit).rankCapNote(maps: Scenario.maps) == nil)
    }

    @Test(arguments: [128, 20, 12])
    func everyClientTrainsWithTheCorrectionOfTheRoundBefore(cap: Int) throws {
        // 8 ranks a round: segments to the end; two of them, then one; one of them.
        var plan = Scenario.plan(.flora, clients: 4, rounds: 4)
        plan.rankCap = cap
        var works: [ScriptedWork] = []
        let federation = try Scenario.federation(plan, store: MemoryFederationStore()) { works.append($0) }
        try federation.run { _, _ in }
        #expect(works.count == 4)
        for work in works {
            #expect(work.trained == [1, 2, 3, 4] && work.corrections[0] == nil)
            for round in 1..<4 {
                let expected = try federation.service.weights(afterRound: round).correction
                #expect(expected != nil && work.corrections[round] == expected, "\(work.name), round \(round + 1)")
            }
        }
    }

    @Test func anotherPlanOnTheSameStateIsRefusedByTheKeysThatDiffer() throws {
        let store = MemoryFederationStore()
        var plan = Scenario.plan(.fedit)
        _ = try Scenario.run(plan, store: store)
        plan.learningRate = 0.5
        let error = try #require(throws: Failure.self) { _ = try Scenario.federation(plan, store: store) }
        #expect(error.status == .cannotCreate && error.message.contains("learning-rate 0.0002 there, 0.5 here"))
    }
}
