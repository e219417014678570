/// A charge as it is kept.

import FoundationEssentials
import Privacy
import Testing

@Suite struct ChargeTests {
    @Test func aChargeSurvivesItsEncoding() throws {
        let charge = PrivacyCharge(samplingRate: 0.01, noiseMultiplier: 1.1, steps: 70)
        #expect(try JSONDecoder().decode(PrivacyCharge.self, from: JSONEncoder().encode(charge)) == charge)
    }
}
