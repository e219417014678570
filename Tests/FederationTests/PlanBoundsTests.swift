/// Every number of a plan has a range, whoever sends the plan.

import Plan
import Primitives
import TestSupport
import Testing

@Suite struct PlanBoundsTests {
    /// A plan in which every number that can be left out is given.
    private static func plan(_ change: (inout FederationPlan) -> Void) -> FederationPlan {
        var plan = Scenario.plan(.fedit, clients: 3, rounds: 3)
        plan.alpha = 8
        change(&plan)
        return plan
    }

    private static let plans = [
        plan { _ in },
        plan {
            $0.privacy = .client
            $0.weighting = .uniform
            ($0.epsilon, $0.noiseMultiplier, $0.clipQuantile, $0.clipCountNoise) = (3, 1, 0.5, 3)
        },
    ]

    /// A plan as a coordinator sends it, one number of which is another.
    private static func changed(_ plan: FederationPlan, _ key: String, _ number: String) throws -> FederationPlan {
        var json = try JSONValue(parsing: PlanCoding.encode(plan))
        json.set(key, key == "ranks" ? .array([.number(number)]) : .number(number))
        return try PlanCoding.decode(Array(json.compact.utf8))
    }

    @Test func noNumberIsTooLargeOrTooSmallToBeRefused() throws {
        for plan in Self.plans {
            try plan.validate(maps: Scenario.maps)
            let json = try JSONValue(parsing: PlanCoding.encode(plan))
            var names = ["ranks"]
            for member in json.members ?? [] {
                if case .number = member.value, member.key != "seed" { names.append(member.key) }
            }
            #expect(names.count >= 20)
            for name in names {
                for number in ["9223372036854775807", "4611686018427387904", "-9223372036854775808", "1e300", "-1e300"] {
                    // What is no whole number is no plan.
                    guard let changed = try? Self.changed(plan, name, number) else { continue }
                    let failure = #expect(throws: Failure.self, "\(name) \(number)") { try changed.validate(maps: Scenario.maps) }
                    #expect(failure?.status == .usage, "\(name) \(number): \(failure?.message ?? "")")
                }
            }
        }
    }

    @Test func aRefusalNamesTheOptionItsValueAndWhatIsPossible() {
        let refusals: [(String, String)] = [
            ("deadlineSeconds", "deadline is 1e+300: at most 315360000 is possible"),
            ("noiseMultiplier", "noise-multiplier is 1e+300: at most 10000000 is possible"),
            ("clip", "clip is 1e+300: at most 1000000 is possible"),
        ]
        for (key, sentence) in refusals {
            let failure = #expect(throws: Failure.self) {
                try Self.changed(Self.plans[1], key, "1e300").validate(maps: Scenario.maps)
            }
            #expect(failure?.message.contains(sentence) == true, "\(failure?.message ?? "")")
        }
    }

    @Test func theLargestDeadlineStillOpensARound() throws {
        var plan = Self.plans[0]
        plan.deadlineSeconds = 315_360_000
        try plan.validate(maps: Scenario.maps)
        #expect(UInt64(Duration.seconds(plan.deadlineSeconds) / .milliseconds(1)) == 315_360_000_000)
    }
}
