/// `tributary privacy`: the noise that an epsilon needs, the epsilon of a noise, and what it refuses.

import Primitives
import TestSupport
import Testing

@Suite struct PrivacyCommandTests {
    private let folder = TemporaryFolder()

    private func run(_ arguments: [String]) throws -> Finished {
        try Finished.run("tributary", ["privacy"] + arguments, in: folder)
    }

    private let mechanism = ["--delta", "1e-5", "--sampling-rate", "0.01", "--steps", "1000"]

    @Test func theEpsilonOfANoiseIsThatOfDPAccounting() throws {
        let finished = try run(mechanism + ["--noise-multiplier", "1", "--json"])
        #expect(finished.status == 0, "\(finished.errors)")
        let result = try JSONValue(parsing: finished.output.utf8)
        let renyi = try #require(result["epsilon_rdp"]?.double)
        let losses = try #require(result["epsilon_pld"]?.double)
        #expect(abs(renyi - 2.10143) < 0.01 && abs(losses - 1.828) < 0.002)
        #expect(result["epsilon"]?.double == losses && result["bound"]?.text == "pld")
        #expect(result["target_met"]?.isNull == true)
    }

    @Test func theNoiseThatAnEpsilonNeedsMeetsIt() throws {
        let finished = try run(mechanism + ["--epsilon", "3", "--json"])
        let result = try JSONValue(parsing: finished.output.utf8)
        let epsilon = try #require(result["epsilon"]?.double)
        #expect(epsilon <= 3 && epsilon > 2.98)
        #expect(result["target_met"]?.bool == true)
        let noise = try #require(result["noise_multiplier"]?.double)
        let back = try run(mechanism + ["--noise-multiplier", "\(noise)"])
        #expect(back.status == 0 && back.output.contains("<- binds"))
        let checked = try run(mechanism + ["--noise-multiplier", "0.5", "--epsilon", "3"])
        #expect(checked.output.contains("above the budget of 3.0"))
    }

    @Test(arguments: [
        ["--epsilon", "0"], ["--epsilon", "3", "--delta", "0"], ["--epsilon", "3", "--sampling-rate", "2"],
        ["--epsilon", "3", "--steps", "0"],
        ["--noise-multiplier", "0"], [], ["--epsilon", "1e-9", "--delta", "1e-15", "--steps", "100000000000"],
    ])
    func whatCannotBeIsOneSentence(arguments: [String]) throws {
        var given = arguments
        for (index, flag) in mechanism.enumerated() where flag.hasPrefix("--") && !arguments.contains(flag) {
            given += [flag, mechanism[index + 1]]
        }
        let finished = try run(given)
        #expect(finished.status == 64)
        #expect(finished.output.isEmpty && finished.errors.split(separator: "\n").count == 1, "\(finished.errors)")
    }
}
