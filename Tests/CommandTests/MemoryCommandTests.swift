/// Memory as commands plan, limit and measure it, and options that mean nothing alone.

import Checkpoints
import Primitives
import Programs
import TestSupport
import Testing

@Suite(.serialized) struct MemoryCommandTests {
    let place: Workplace

    init() throws { place = try Workplace() }

    private func bench(_ more: [String] = []) -> [String] {
        [
            "bench", "train", "--model", place.model, "--rank", "4", "--batch-size", "2", "--sequence-length", "16", "--steps",
            "2",
        ] + more
    }

    private func expectUsage(_ arguments: [String], _ sentence: String, _ location: SourceLocation = #_sourceLocation) throws {
        let finished = try place.run(arguments)
        #expect(finished.status == ExitStatus.usage.rawValue, "\(finished.errors)", sourceLocation: location)
        #expect(finished.sentence.contains(sentence), "\(finished.errors)", sourceLocation: location)
    }

    @Test func aPlanIsPrintedPartByPart() throws {
        let plan = try place.json(["model", "inspect", place.model, "--plan", "--quantize", "nf4"])
        let parts = try #require(plan["parts"]?.elements)
        let bytes = try parts.map { try #require($0["bytes"]?.int) }
        #expect(parts.count > 8 && parts.allSatisfy { $0["name"]?.text != nil && $0["mapped"] != nil })
        #expect(plan["peak_bytes"]?.int == bytes.reduce(0, +))
        #expect((plan["planned_gib"]?.double ?? 0) > 0 && plan["saved_blocks"] == plan["blocks"])
        let text = try place.run(["model", "inspect", place.model])
        #expect(text.output.contains("with --quantize none, ") && text.output.contains("with --quantize fp4; embeddings, "))
    }

    @Test func stepsAfterTheFirstTakeNoMemory() throws {
        // On one thread: another one takes its own where it first has something to do.
        let finished = try Finished.run(
            "tributary", bench(["--json"]), in: place.folder, environment: ["TRIBUTARY_THREADS=1"])
        #expect(finished.status == 0, "\(finished.errors)")
        let result = try JSONValue(parsing: finished.output.utf8)
        #expect(result["blocks_taken_after_first_step"]?.int == 0)
        #expect((result["peak_gib"]?.double ?? 0) > 0 && (result["planned_gib"]?.double ?? 0) > 0)
        #expect(result["threads"]?.int == 1)
    }

    @Test func aLimitThatIsTooSmallIsRefusedInOneSentence() throws {
        let limit = ["--memory-limit", "1MiB"]
        for command in [
            bench(limit), place.train("out", limit), place.simulate("out", limit),
            ["model", "inspect", place.model, "--plan"] + limit,
        ] {
            try expectUsage(command, "--memory-limit is 1 MiB, but training needs")
        }
        #expect(!place.exists(place.file("out")))
        let wrong = try place.run(bench(["--memory-limit", "many"]))
        #expect(wrong.status == ExitStatus.usage.rawValue && wrong.errors.contains("--memory-limit"))
    }

    @Test func sizesAreReadAsPeopleTypeThem() {
        for (text, bytes) in [
            ("1.5GiB", 3 << 29), ("600MiB", 600 << 20), ("2GB", 2_000_000_000), ("2 kb", 2000), ("1kib", 1024),
            ("0.5mb", 500_000),
        ] {
            #expect(ByteSize(argument: text)?.bytes == bytes, "\(text)")
        }
        for text in ["", "1", "GiB", "-1GiB", "0MiB", "1TB", "nanGiB", "infGiB", "1e30GiB", "1,5GiB"] {
            #expect(ByteSize(argument: text) == nil, "\(text)")
        }
    }

    @Test func optionsThatMeanNothingAloneAreRefused() throws {
        try expectUsage(
            ["model", "start-report", "--model", place.model, "--quantize", "nf4", "--limit", "3"],
            "--limit means nothing without --data")
        try expectUsage(
            place.evaluate(["--exact-match-marker", "####"]), "--exact-match-marker means nothing without --exact-match")
        let quantize = ["model", "quantize", "--model", place.model, "--quantize", "nf4", "--output", place.file("out")]
        for (option, value) in [
            ("--rank", "4"), ("--alpha", "8"), ("--target-modules", "q_proj"), ("--steps", "2"), ("--seed", "1"),
            ("--start-output", place.file("start")),
        ] {
            try expectUsage(quantize + [option, value], "\(option) means nothing without --start")
        }
        for output in ["out", "out/", "./out", "out/start"] {
            try expectUsage(
                quantize + ["--start", "lq", "--start-output", place.file(output)], "--start-output is --output or a folder")
        }
        try expectUsage(
            quantize + ["--start", "lq", "--start-output", place.folder.path], "--start-output is --output or a folder")
        try TinyEncoder.write(to: place.file("encoder"))
        try expectUsage(
            [
                "model", "quantize", "--model", place.file("encoder"), "--quantize", "nf4", "--output", place.file("out"),
                "--start", "lq", "--start-output", place.file("start"),
            ], "--start is for models that predict tokens")
        #expect(!place.exists(place.file("out")) && !place.exists(place.file("start")))
    }
}
