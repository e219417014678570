/// `tributary simulate` with options of compression and privacy that cannot work, and with some that can.

import FoundationEssentials
import Primitives
import TestSupport
import Testing

@Suite(.serialized) struct CompressionAndPrivacyInputTests {
    let place: Workplace

    init() throws { place = try Workplace() }

    @Test func whatCannotWorkIsOneSentence() throws {
        let refusals: [([String], String)] = [
            (["--compress", "zip"], "\"zip\" is no codec: use f32, bf16, int8, topk:K"),
            (["--compress", "topk"], "is not how the codec topk is written"),
            (["--compress", "topk:0"], "topk"), (["--compress", "compeft:1.5"], "compeft"),
            (["--compress", "compeft:nan"], "compeft"),
            (["--compress", "f32", "--error-feedback"], "error-feedback is not possible with compress f32"),
            (["--compress", "compeft:0.1:sigma=2", "--error-feedback"], "error-feedback is not possible"),
            (
                ["--strategy", "flora", "--compress", "compeft:0.1", "--error-feedback"],
                "error-feedback is not possible with flora"
            ),
            (["--strategy", "flora", "--compress-downlink", "bf16"], "compress-downlink is not possible with flora"),
            (["--compress-downlink", "compeft:0.1:sigma=2"], "is not possible"),
            (["--residual-decay", "2"], "residual-decay is 2.0"),
            (["--epsilon", "3"], "epsilon means nothing without differential privacy"),
            (["--clip-learning-rate", "0.5"], "clip-learning-rate means nothing without differential privacy"),
            (["--dp", "both"], "client"), (["--dp", "example"], "dp example has no strength"),
            (["--dp", "example", "--epsilon", "0"], "epsilon is 0.0"),
            (["--dp", "example", "--epsilon", "3", "--delta", "1"], "delta is 1.0"),
            (["--dp", "example", "--epsilon", "3", "--clip", "0"], "clip is 0.0"),
            (["--dp", "example", "--epsilon", "3", "--gradient-clip", "1"], "gradient-clip is 1.0"),
            (["--dp", "example", "--epsilon", "3", "--weighting", "samples"], "--public-counts"),
            (["--dp", "example", "--epsilon", "3", "--clip-quantile", "0.5"], "belongs to dp client"),
            (["--dp", "example", "--epsilon", "3", "--strategy", "fed-sb"], "use --start xs"),
            (["--dp", "example", "--epsilon", "3", "--eval-data", place.evaluation], "--public-evaluation"),
            (["--dp", "client", "--epsilon", "3", "--strategy", "flora"], "dp client is not possible with flora"),
            (["--dp", "client", "--epsilon", "3", "--clients-per-round", "2"], "--client-sampling-rate"),
            (["--dp", "client", "--epsilon", "3", "--client-sampling-rate", "0"], "client-sampling-rate is 0.0"),
            (["--dp", "client", "--epsilon", "3", "--clip-quantile", "2"], "clip-quantile is 2.0"),
            (["--dp", "client", "--epsilon", "0.001", "--noise-multiplier", "1"], "raise --noise-multiplier"),
            (["--dp", "client", "--noise-multiplier", "1e-200"], "raise --noise-multiplier"),
            (["--unsafe-dp-seed", "1"], "--unsafe-dp-seed means nothing without --dp"),
        ]
        for (flags, sentence) in refusals {
            let finished = try place.run(place.simulate("run", flags))
            #expect(finished.status == ExitStatus.usage.rawValue, "\(flags): \(finished.errors)")
            #expect(finished.sentence.contains(sentence), "\(flags): \(finished.errors)")
            #expect(finished.output.isEmpty && !place.exists(place.file("run")), "\(flags) left something")
        }
    }

    @Test func aRunWhoseBudgetIsSpentEndsEarlyAndSucceeds() throws {
        let flags = [
            "--rounds", "5", "--dp", "client", "--noise-multiplier", "2", "--epsilon", "3", "--delta", "1e-5", "--json",
        ]
        let finished = try place.run(place.simulate("run", flags))
        #expect(finished.status == 0, "\(finished.errors)")
        let lines = try place.text(place.file("run/metrics.jsonl")).split(separator: "\n").map { try JSONValue(parsing: $0.utf8) }
        #expect(lines.count > 0 && lines.count < 5)
        #expect(lines.allSatisfy { ($0["epsilon"]?.double ?? 9) <= 3 })
        #expect(place.exists(place.file("run/adapter/adapter_model.safetensors")))
    }

    @Test func everyOutputOfASeededRunSaysThatNothingIsGuaranteed() throws {
        for level in ["example", "client"] {
            let flags = ["--dp", level, "--noise-multiplier", "4", "--unsafe-dp-seed", "2", "--json"]
            let finished = try place.run(place.simulate(level, flags))
            #expect(finished.status == 0 && finished.errors.contains("privacy guarantee: none"), "\(finished.errors)")
            let lines = finished.output.split(separator: "\n")
            #expect(lines.dropLast().allSatisfy { $0.contains("\"privacy_guarantee\":\"none") })
            #expect(try place.text(place.file("\(level)/metrics.jsonl")).contains("\"privacy_guarantee\":\"none"))
            #expect(try place.text(place.file("\(level)/run.json")).contains("none: the noise follows from --unsafe-dp-seed"))
            // The same seed gives the same bits; without one, no two runs are alike.
            #expect(try place.run(place.simulate(level + "-again", flags)).status == 0)
            let adapter = "/adapter/adapter_model.safetensors"
            #expect(try place.bytes(place.file(level) + adapter) == place.bytes(place.file(level + "-again") + adapter))
            #expect(try place.run(place.simulate(level + "-secret", Array(flags.prefix(4)))).status == 0)
            #expect(try place.bytes(place.file(level) + adapter) != place.bytes(place.file(level + "-secret") + adapter))
            #expect(try !place.text(place.file(level + "-secret/run.json")).contains("unsafe-dp-seed"))
        }
    }
}
