/// Says in which keys two plans differ.

import Primitives

public enum PlanDifference {
    /// Differences that are told one by one, and characters of a value: labels may be thousands.
    private static let mostTold = 6
    private static let longestValue = 60

    /// Properties whose keys are not their names with dashes.
    private static let names = [
        "minimumClients": "min-clients", "deadlineSeconds": "deadline", "privacy": "dp", "exactMatchTokens": "exact-match",
        "initialAdapterDigest": "init-adapter", "baseDigest": "model (the base's digest)",
        "tokenizerDigest": "model (the tokenizer's digest)", "head": "model (the head)",
    ]

    /// The key of a property of the plan, as flags have it without the dashes.
    public static func key(ofProperty property: String) -> String {
        if let name = names[property] { return name }
        return property.reduce(into: "") { key, character in
            key += character.isUppercase ? "-" + character.lowercased() : String(character)
        }
    }

    /// `rounds 10 there, 20 here; seed 0 there, 1 here`
    public static func describe(_ there: FederationPlan, _ here: FederationPlan) -> String {
        let (left, right) = (fields(there), fields(here))
        let differing = Set(left.keys).union(right.keys).sorted().filter { left[$0] != right[$0] }
        var told = differing.prefix(mostTold).map { "\($0) \(shown(left[$0])) there, \(shown(right[$0])) here" }
        if differing.count > mostTold { told.append("and \(differing.count - mostTold) more") }
        return told.joined(separator: "; ")
    }

    /// Every property of the plan that has a value, by its key.
    private static func fields(_ plan: FederationPlan) -> [String: String] {
        let members = (try? JSONValue(parsing: PlanCoding.encode(plan)))?.members ?? []
        return Dictionary(
            members.map { (key(ofProperty: $0.key), $0.value.text ?? $0.value.compact) }, uniquingKeysWith: { first, _ in first })
    }

    private static func shown(_ value: String?) -> String {
        guard let value, !value.isEmpty else { return "unset" }
        return value.count > longestValue ? value.prefix(longestValue) + "..." : value
    }
}
