/// What has been spent stays spent.

import FoundationEssentials
import Primitives
import Privacy
import Testing

@Suite struct LedgerTests {
    private let charge = PrivacyCharge(samplingRate: 0.01, noiseMultiplier: 1, steps: 100)

    @Test func aChargeCountsOnceAndOtherIdsAddUp() throws {
        var ledger = PrivacyLedger()
        #expect(ledger.epsilon(delta: 1e-5) == 0)
        #expect(try ledger.charge(id: "round 0", charge))
        let once = ledger.epsilon(delta: 1e-5)
        #expect(try !ledger.charge(id: "round 0", charge))
        #expect(ledger.epsilon(delta: 1e-5) == once && ledger.entries.count == 1)
        let foretold = ledger.epsilon(delta: 1e-5, adding: charge)
        #expect(foretold > once)
        #expect(try ledger.charge(id: "round 1", charge))
        #expect(ledger.epsilon(delta: 1e-5) == foretold)
        var merged = charge
        merged.steps = 200
        #expect(PrivacyAccountant.epsilon(of: [merged], delta: 1e-5) == foretold)
        #expect(ledger.holds(id: "round 1") && !ledger.holds(id: "round 2"))
    }

    @Test func anIdIsNeverChargedOtherwise() throws {
        var ledger = PrivacyLedger()
        try ledger.charge(id: "a", charge)
        let before = ledger
        var other = charge
        other.steps = 1
        #expect(throws: Failure.self) { try ledger.charge(id: "a", other) }
        for bad in [
            PrivacyCharge(samplingRate: 0, noiseMultiplier: 1, steps: 1),
            PrivacyCharge(samplingRate: 1.1, noiseMultiplier: 1, steps: 1),
            PrivacyCharge(samplingRate: 0.5, noiseMultiplier: 0, steps: 1),
            PrivacyCharge(samplingRate: 0.5, noiseMultiplier: .nan, steps: 1),
            PrivacyCharge(samplingRate: 0.5, noiseMultiplier: 1, steps: -1),
        ] {
            #expect(throws: Failure.self) { try ledger.charge(id: "b", bad) }
            #expect(PrivacyAccountant.epsilon(of: [bad], delta: 1e-5) == .infinity)
        }
        #expect(ledger == before)
    }

    @Test func aLedgerSurvivesItsEncodingAndRefusesDamage() throws {
        var ledger = PrivacyLedger()
        try ledger.charge(id: "a", charge)
        try ledger.charge(id: "b", charge)
        let data = try JSONEncoder().encode(ledger)
        #expect(try JSONDecoder().decode(PrivacyLedger.self, from: data) == ledger)
        let text = String(decoding: data, as: UTF8.self)
        for damaged in [
            text.replacing(#""id":"b""#, with: #""id":"a""#), text.replacing(#""steps":100"#, with: #""steps":-100"#),
            text.replacing("entries", with: "entry"),
        ] {
            #expect(damaged != text)
            #expect(throws: DecodingError.self) { try JSONDecoder().decode(PrivacyLedger.self, from: Data(damaged.utf8)) }
        }
    }
}
