/// Says in which keys two plans differ.

import FoundationEssentials
import Primitives

public enum PlanDifference {
    /// `rounds 10 there, 20 here; seed 0 there, 1 here`
    public static func describe(_ there: FederationPlan, _ here: FederationPlan) -> String {
        let left = fields(there)
        let right = fields(here)
        let differing = Set(left.keys).union(right.keys).sorted().filter { left[$0] != right[$0] }
        return differing.map { "\($0) \(left[$0] ?? "unset") there, \(right[$0] ?? "unset") here" }.joined(separator: "; ")
    }

    /// Every stored property of the plan by name.
    private static func fields(_ plan: FederationPlan) -> [String: String] {
        var fields: [String: String] = [:]
        for child in Mirror(reflecting: plan).children {
            guard let label = child.label else { continue }
            let value = Mirror(reflecting: child.value)
            fields[label] =
                value.displayStyle == .optional
                ? value.children.first.map { "\($0.value)" } ?? "unset" : "\(child.value)"
        }
        return fields
    }
}
