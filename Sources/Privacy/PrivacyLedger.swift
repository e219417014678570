/// What a holder of private data has spent so far: it only ever grows.

import Primitives

/// Charges by the id of what they paid for, in order. A charge is entered, and the ledger stored, before the first byte
/// that it pays for leaves the process; entering it again, after a restart, changes nothing.
public struct PrivacyLedger: Equatable, Sendable {
    public struct Entry: Codable, Equatable, Sendable {
        /// What was paid for, such as a run, a round and an attempt; never used for two releases.
        public let id: String
        public let charge: PrivacyCharge
    }

    public private(set) var entries: [Entry] = []

    public init() {}

    /// Enters a charge.
    ///
    /// - Returns: false if it was there already
    /// - Throws: `Failure(.badData)` if the id stands for another charge, or if the charge is out of its ranges
    @discardableResult public mutating func charge(id: String, _ charge: PrivacyCharge) throws(Failure) -> Bool {
        guard charge.isValid else {
            throw Failure(
                .badData,
                "the privacy charge \(id) has sampling rate \(charge.samplingRate), noise multiplier \(charge.noiseMultiplier) and \(charge.steps) steps, which is no Gaussian mechanism: nothing was charged"
            )
        }
        if let known = entries.first(where: { $0.id == id }) {
            guard known.charge == charge else {
                throw Failure(
                    .badData,
                    "the privacy ledger holds another charge under \(id): it was spent and cannot be changed, use another id")
            }
            return false
        }
        entries.append(Entry(id: id, charge: charge))
        return true
    }

    /// True if the id has been paid for.
    public func holds(id: String) -> Bool { entries.contains { $0.id == id } }

    /// What all charges cost together.
    public func epsilon(delta: Double) -> Double { PrivacyAccountant.epsilon(of: entries.map(\.charge), delta: delta) }

    /// What they and one more would cost.
    public func epsilon(delta: Double, adding charge: PrivacyCharge) -> Double {
        PrivacyAccountant.epsilon(of: entries.map(\.charge) + [charge], delta: delta)
    }
}

extension PrivacyLedger: Codable {
    private enum CodingKeys: String, CodingKey { case entries }

    /// Refuses what `charge` would have refused, and an id that occurs twice.
    public init(from decoder: any Decoder) throws {
        let container = try decoder.container(keyedBy: CodingKeys.self)
        for entry in try container.decode([Entry].self, forKey: .entries) {
            let isNew: Bool
            do { isNew = try charge(id: entry.id, entry.charge) } catch {
                throw DecodingError.dataCorruptedError(forKey: .entries, in: container, debugDescription: error.message)
            }
            guard isNew else {
                throw DecodingError.dataCorruptedError(
                    forKey: .entries, in: container, debugDescription: "the privacy ledger holds \(entry.id) twice")
            }
        }
    }

    public func encode(to encoder: any Encoder) throws {
        var container = encoder.container(keyedBy: CodingKeys.self)
        try container.encode(entries, forKey: .entries)
    }
}
