/// A plan as JSON, with sorted keys: how it is stored, sent and written to `run.json`.

import FoundationEssentials
import Primitives

public enum PlanCoding {
    public static func encode(_ plan: FederationPlan) -> [UInt8] {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
        // A plan holds only numbers, texts and digests, and its numbers were checked to be finite.
        guard let data = try? encoder.encode(plan) else { preconditionFailure("the plan \(plan) cannot be encoded") }
        return Array(data)
    }

    /// - Throws: `Failure(.protocolError)` if the bytes are no plan of this version.
    public static func decode(_ bytes: [UInt8]) throws(Failure) -> FederationPlan {
        do {
            return try JSONDecoder().decode(FederationPlan.self, from: Data(bytes))
        } catch {
            throw Failure(
                .protocolError,
                "the run's plan cannot be read by this version (\(Version.current)): use the same Tributary version on both sides (\(error))"
            )
        }
    }
}
