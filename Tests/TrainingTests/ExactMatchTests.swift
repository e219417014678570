/// What counts as the same answer, and how tokens are drawn.

import Primitives
import Testing
import Training

@Suite struct ExactMatchTests {
    @Test func onlyWhiteSpaceAroundAnAnswerIsForgiven() {
        let plain = ExactMatch(maximumTokens: 8)
        #expect(plain.isMatch(" 42\n", "42"))
        #expect(!plain.isMatch("4 2", "42") && !plain.isMatch("42.", "42") && plain.isMatch("", " "))
        let marked = ExactMatch(maximumTokens: 8, marker: "####")
        #expect(marked.isMatch("one way #### 42", "another way\n####42 "))
        #expect(!marked.isMatch("42", "#### 42") && !marked.isMatch("#### 41", "#### 42") && !marked.isMatch("42", "42"))
    }

    @Test func greedyTakesTheLikeliestAndTheLowerOfTwo() {
        var generator = SeededGenerator(seed: 1, purpose: "test")
        #expect(Sampling.greedy.draw([0, 3, 1, 3], &generator) == 1)
        // A nucleus too small for two tokens is greedy, whatever the temperature.
        let narrow = Sampling(temperature: 1, topP: 0.01)
        #expect((0..<100).allSatisfy { _ in narrow.draw([0, 3, 1, 2], &generator) == 1 })
    }

    @Test func drawnTokensFollowTheirProbabilities() {
        var generator = SeededGenerator(seed: 2, purpose: "test")
        // e^(ln 8 / 2) : e^(ln 4 / 2) : 1 at temperature 2.
        let logits: [Float] = [2.0794415, 0, 1.3862944]
        let shares = [2.828427, 1.0, 2.0].map { $0 / 5.828427 }
        var counts = [0, 0, 0]
        let sampling = Sampling(temperature: 2, topP: 1)
        for _ in 0..<20_000 { counts[Int(sampling.draw(logits, &generator))] += 1 }
        for (count, share) in zip(counts, shares) { #expect(abs(Double(count) / 20_000 - share) < 0.015) }
        // The two likeliest reach 0.8; the third is never drawn.
        let nucleus = Sampling(temperature: 2, topP: 0.8)
        counts = [0, 0, 0]
        for _ in 0..<2_000 { counts[Int(nucleus.draw(logits, &generator))] += 1 }
        #expect(counts[1] == 0 && counts[0] > counts[2])
        #expect(throws: Failure.self) { try Sampling(temperature: -1, topP: 1).validate() }
        #expect(throws: Failure.self) { try Sampling(temperature: 1, topP: 0).validate() }
    }
}
