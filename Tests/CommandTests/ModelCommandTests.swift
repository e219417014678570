/// The commands for one machine agree with one another, and what they print for programs can be read by programs.

import Checkpoints
import FoundationEssentials
import Glibc
import Primitives
import TestSupport
import Testing

@Suite(.serialized) struct ModelCommandTests {
    let place: Workplace

    init() throws { place = try Workplace() }

    @Test func trainingSeesTheLossThatEvaluationMeasures() throws {
        let trained = try place.json(place.train("adapter", ["--quantize", "none"]))
        for key in [
            "adapter", "loss", "last_loss", "steps", "examples", "target_tokens", "seconds", "tokens_per_second", "peak_gib",
        ] {
            #expect(trained[key] != nil, "\(key) is missing")
        }
        let measured = try place.json(place.evaluate(["--adapter", place.file("adapter"), "--quantize", "none"]))
        let base = try place.json(place.evaluate(["--quantize", "none"]))
        let loss = try #require(measured["loss"]?.double)
        #expect(loss < (try #require(base["loss"]?.double)))
        // One step over the whole data set: its loss is that of the adapter that it began with.
        let again = try place.json(
            place.train(
                "again",
                [
                    "--quantize", "none", "--init-adapter", place.file("adapter"), "--steps", "1", "--batch-size",
                    "\(Workplace.records)",
                ]))
        let seen = try #require(again["last_loss"]?.double)
        #expect(abs(seen - loss) < 1e-5 * loss, "\(seen) in training, \(loss) in evaluation")
        #expect(again["target_tokens"]?.int == measured["target_tokens"]?.int)
    }

    @Test func trainingIsRepeatable() throws {
        _ = try place.json(place.train("first"))
        _ = try place.json(place.train("second"))
        _ = try place.json(place.train("third", ["--seed", "8"]))
        let first = try place.bytes(place.file("first/adapter_model.safetensors"))
        #expect(first == (try place.bytes(place.file("second/adapter_model.safetensors"))))
        #expect(first != (try place.bytes(place.file("third/adapter_model.safetensors"))))
    }

    @Test func packedTrainingSaysHowFullItsBinsAre() throws {
        let packed = try place.json(place.train("packed", ["--packing", "best-fit", "--batch-size", "1"]))
        let plain = try place.json(place.train("plain", ["--batch-size", "1"]))
        let bins = try #require(packed["bins"]?.int)
        let examples = try #require(packed["examples"]?.int)
        #expect(bins >= 1 && bins < examples)
        let fill = try #require(packed["fill_rate"]?.double)
        #expect(fill > 0.1 && fill <= 1)
        let (targets, fewer) = (try #require(packed["target_tokens"]?.int), try #require(plain["target_tokens"]?.int))
        #expect(targets > fewer)
        #expect(plain["bins"] == .null && plain["fill_rate"] == .null)
        let wrong = try place.run(place.train("wrong", ["--packing", "first-fit"]))
        #expect(wrong.status == ExitStatus.usage.rawValue && wrong.sentence.contains("off, best-fit"))
    }

    @Test(arguments: ["lora", "ffa-lora", "lora-sb"]) func everyKindOfAdapterTrainsAndEvaluates(kind: String) throws {
        _ = try place.json(place.train("adapter", ["--adapter", kind, "--target-modules", "q_proj,down_proj"]))
        let loss = try place.json(place.evaluate(["--adapter", place.file("adapter")]))["loss"]?.double
        #expect(try #require(loss) < (try #require(try place.json(place.evaluate())["loss"]?.double)))
    }

    @Test func evaluationPrintsWhatIsPromised() throws {
        let result = try place.json(place.evaluate(["--exact-match", "4"]))
        let loss = try #require(result["loss"]?.double)
        let perplexity = try #require(result["perplexity"]?.double)
        #expect(abs(perplexity - exp(loss)) < 1e-6 * perplexity)
        #expect(try #require(result["target_tokens"]?.int) > Workplace.records)
        #expect(result["examples"]?.int == Workplace.records)
        #expect(0...1 ~= (try #require(result["exact_match"]?.double)))
        #expect(try place.json(place.evaluate())["exact_match"]?.isNull == true)
    }

    @Test func mergingGivesTheModelThatTheAdapterMakes() throws {
        _ = try place.json(place.train("adapter"))
        _ = try place.json(
            ["model", "merge", "--model", place.model, "--adapter", place.file("adapter"), "--output", place.file("merged")])
        let adapted = try #require(try place.json(place.evaluate(["--adapter", place.file("adapter")]))["loss"]?.double)
        let merged = try #require(
            try place.json(["model", "eval", "--model", place.file("merged"), "--data", place.data])["loss"]?.double)
        #expect(abs(adapted - merged) < 1e-4, "\(adapted) with the adapter, \(merged) merged")
    }

    @Test func aQuantizedFolderIsTheModelQuantizedWhileItLoads() throws {
        let quantized = place.file("quantized")
        let sizes = try place.json(["model", "quantize", "--model", place.model, "--quantize", "nf4", "--output", quantized])
        #expect(try #require(sizes["bytes"]?.int) < (try #require(sizes["bytes_before"]?.int)))
        let stored = try place.json(["model", "eval", "--model", quantized, "--data", place.data])
        let loaded = try place.json(place.evaluate(["--quantize", "nf4"]))
        #expect(stored["loss"] == loaded["loss"] && stored["loss"]?.double != nil)
        let int8 = try place.run(["model", "eval", "--model", quantized, "--data", place.data, "--quantize", "int8"])
        #expect(int8.status == ExitStatus.usage.rawValue)
        #expect(int8.sentence.contains("is quantized already"))
        let planned = try place.run(["model", "inspect", quantized, "--plan", "--quantize", "fp4"])
        #expect(planned.status == ExitStatus.usage.rawValue && planned.sentence.contains("is quantized already"))
        let twice = try place.run([
            "model", "quantize", "--model", quantized, "--quantize", "nf4", "--output", place.file("twice"),
        ])
        #expect(twice.status == ExitStatus.usage.rawValue)
        #expect(twice.sentence.contains("is quantized already") && !place.exists(place.file("twice")))
    }

    @Test func aStartIsReportedAndWritten() throws {
        let report = try place.json(
            [
                "model", "start-report", "--model", place.model, "--quantize", "nf4", "--rank", "8", "--data", place.data,
                "--limit", "4",
            ])
        let plain = try #require(report["relative_error"]?.double)
        let started = try #require(report["relative_error_with_start"]?.double)
        #expect(started < plain && plain < 0.2 && report["perplexity_with_start"]?.double != nil)
        let arguments = [
            "model", "quantize", "--model", place.model, "--quantize", "fp4", "--output", place.file("fp4"), "--start", "lq",
            "--rank",
            "8", "--no-nested", "--block", "128",
        ]
        let refused = try place.run(arguments)
        #expect(refused.status == ExitStatus.usage.rawValue && refused.sentence.contains("--start-output"))
        let written = try place.json(arguments + ["--start-output", place.file("start")])
        #expect(
            try #require(written["relative_error_with_start"]?.double) < (try #require(written["relative_error"]?.double)))
        let loss = try place.json([
            "model", "eval", "--model", place.file("fp4"), "--adapter", place.file("start"), "--data", place.data,
        ])
        #expect(loss["loss"]?.double != nil)
        // Without data the weights' errors are the same, and no model is loaded.
        let weightsAlone = try place.json([
            "model", "start-report", "--model", place.model, "--quantize", "nf4", "--rank", "8",
        ])
        for key in ["relative_error", "relative_error_with_start", "maps", "format"] {
            #expect(weightsAlone[key] == report[key], "\(key)")
        }
        #expect(weightsAlone["perplexity"]?.isNull == true)
        let exact = try place.run(["model", "start-report", "--model", place.model, "--rank", "8"])
        #expect(exact.status == ExitStatus.usage.rawValue && exact.sentence.contains("holds its weights exactly"))
    }

    @Test func aStartThatCannotBeWrittenLeavesNoModelBehind() throws {
        let quantize = [
            "model", "quantize", "--model", place.model, "--quantize", "nf4", "--output", place.file("base"), "--start", "lq",
            "--rank", "4", "--steps", "1", "--start-output",
        ]
        // Within a file there is no place for a folder.
        let refused = try place.run(quantize + [place.data + "/start"])
        #expect(refused.status == ExitStatus.cannotCreate.rawValue, "\(refused.errors)")
        #expect(!place.exists(place.file("base")))
        _ = try place.json(quantize + [place.file("start")])
        let configuration = try JSONValue(parsing: place.bytes(place.file("start/adapter_config.json")))
        let base = try #require(configuration["base_model_name_or_path"]?.text)
        #expect(base.hasPrefix("/") && base.hasSuffix("/base") && place.exists(base + "/config.json"))
        #expect(try place.run(["model", "inspect", base]).status == 0)
    }

    @Test func generationRepeatsWithItsSeed() throws {
        func text(seed: Int) throws -> String? {
            try place.json(
                [
                    "model", "generate", "--model", place.model, "--prompt", "7+5=", "--max-tokens", "24", "--temperature", "2",
                    "--top-p", "0.95", "--seed", "\(seed)",
                ])["text"]?.text
        }
        let first = try #require(try text(seed: 3))
        #expect(first == (try text(seed: 3)))
        #expect(first != (try text(seed: 4)))
    }

    @Test func theOtherCommandsPrintOneObjectToo() throws {
        let inspected = try place.json(["model", "inspect", place.model])
        for key in ["architecture", "parameters", "base_digest", "tokenizer", "target_modules"] {
            #expect(inspected[key] != nil, "\(key) is missing")
        }
        let bench = try place.json(
            [
                "bench", "train", "--model", place.model, "--quantize", "nf4", "--rank", "4", "--batch-size", "2",
                "--sequence-length", "16", "--steps", "2",
            ])
        for key in ["tokens_per_second", "seconds_per_step", "gemm_peak_share", "peak_gib"] {
            #expect(try #require(bench[key]?.double) > 0, "\(key)")
        }
        let codecs = try place.json(["bench", "codec", "--values", "1001", "--tensors", "3"])
        #expect(try #require(codecs["memcpy_ms"]?.double) > 0)
        for row in try #require(codecs["codecs"]?.elements) {
            for key in ["encode_ms", "decode_ms", "bits_per_value"] { #expect(try #require(row[key]?.double) > 0, "\(key)") }
        }
        let both = try place.json(
            [
                "bench", "train", "--dp", "--model", place.model, "--rank", "4", "--batch-size", "2", "--sequence-length", "16",
                "--steps", "1",
            ])
        for key in ["tokens_per_second", "private_tokens_per_second", "private_time_ratio", "private_processor_ratio"] {
            #expect(try #require(both[key]?.double) > 0, "\(key)")
        }
        let doctor = try place.json(["doctor"])
        for key in ["kernels", "openblas", "cores", "memory", "disk", "advice"] {
            #expect(doctor[key] != nil, "\(key) is missing")
        }
    }

    @Test func theComputeTypeIsFloat32UnlessAnotherIsAskedFor() throws {
        let loss = try #require(try place.json(place.evaluate())["loss"]?.double)
        #expect(try place.json(place.evaluate(["--compute", "float32"]))["loss"]?.double == loss)
        let decoded = try place.json(place.evaluate(["--quantize", "none"]))["loss"]
        #expect(try place.json(place.evaluate(["--quantize", "none", "--compute", "auto"]))["loss"] == decoded)
        let rounded = try place.run(place.evaluate(["--compute", "bfloat16", "--json"]))
        if rounded.status == 0 {
            let other = try #require(try JSONValue(parsing: rounded.output.utf8)["loss"]?.double)
            #expect(other != loss && abs(other - loss) < 0.01 * loss, "\(other) and \(loss)")
        } else {
            #expect(rounded.status == ExitStatus.usage.rawValue && rounded.sentence.contains("AVX512-BF16"))
        }
        let unknown = try place.run(place.evaluate(["--compute", "half"]))
        #expect(unknown.status == ExitStatus.usage.rawValue && unknown.sentence.contains("--compute is half"))
    }

    @Test func productsAreMeasured() throws {
        let result = try place.json(
            ["bench", "gemm", "--shapes", "96x64,40x100", "--tokens", "32", "--repetitions", "1"])
        let products = try #require(result["products"]?.elements)
        #expect(Set(products.compactMap { $0["outputs"]?.int }) == [96, 40])
        #expect(products.allSatisfy { ($0["one_thread_gflops"]?.double ?? 0) > 0 && ($0["all_threads_gflops"]?.double ?? 0) > 0 })
        #expect(result["register_peak_gflops"]?["float32"] != nil)
        let wrong = try place.run(["bench", "gemm", "--shapes", "96"])
        #expect(wrong.status == ExitStatus.usage.rawValue && wrong.sentence.contains("OUTPUTSxINPUTS"))
    }

    @Test func decodingIsMeasured() throws {
        let result = try place.json(
            [
                "bench", "decode", "--model", place.model, "--quantize", "nf4", "--rank", "2", "--prompt", "5", "--steps", "3",
                "--shape", "48x100", "--tokens", "3", "--megabytes", "1", "--repetitions", "1",
            ])
        let products = try #require(result["products"]?.elements)
        #expect(products.compactMap { $0["weights"]?.text } == ["nf4", "nf4 plain", "int8", "bf16", "f16", "f32"])
        for row in products {
            for key in ["cached_g_per_second", "streamed_g_per_second", "share_of_limit"] {
                #expect(try #require(row[key]?["one_thread"]?.double) > 0, "\(key)")
            }
        }
        for key in ["tokens_per_second", "bytes_per_token", "share_of_reading"] {
            #expect(try #require(result[key]?.double) > 0, "\(key)")
        }
        let wrong = try place.run(["bench", "decode", "--tokens", "8"])
        #expect(wrong.status == ExitStatus.usage.rawValue && wrong.sentence.contains("from 1 to 7"))
    }

    @Test func anInterruptKeepsTheAdapter() throws {
        let process = try place.start(place.train("adapter", ["--steps", "100000"]))
        // Progress is a line of the log: the training runs.
        try process.waitForError("step ")
        process.send(SIGINT)
        #expect(try process.exitStatus() == ExitStatus.interrupted.rawValue)
        #expect(process.errors.contains("adapter holds the adapter as it was then"))
        _ = try place.json(place.evaluate(["--adapter", place.file("adapter")]))
    }

    @Test func anOutputThatCannotBeMadeIsKnownBeforeTheFirstStep() throws {
        try place.write(place.file("afile"), "")
        let finished = try place.run(place.train("afile/sub", ["--steps", "100000000"]))
        #expect(finished.status == ExitStatus.cannotCreate.rawValue)
        #expect(finished.sentence.contains("afile/sub cannot be made") && !finished.errors.contains("training "))
        // What is found wrong after the folder was made leaves neither it nor those on the way to it.
        let model = try place.damagedModel { folder in
            let path = folder + "/model.safetensors"
            let file = try SafetensorsFile(path: path)
            var tensors: [(name: String, shape: [Int], values: [Float])] = []
            for name in file.names {
                let tensor = try #require(file.tensors[name])
                tensors.append((name, tensor.shape, try tensor.floats().map { _ in Float.nan }))
            }
            try writeSafetensors(path, floats: tensors)
        }
        let failed = try place.run(place.train("new/deep/adapter", ["--model", model]))
        #expect(failed.status == ExitStatus.badData.rawValue, "\(failed.errors)")
        let names = try FileManager.default.contentsOfDirectory(atPath: place.file(""))
        #expect(!names.contains { $0.contains(".tmp-") || $0 == "new" }, "\(names)")
    }

    @Test func anAdapterIsNotReplacedUnlessTrainingGoesOnFromIt() throws {
        _ = try place.json(place.train("adapter"))
        let before = try place.bytes(place.file("adapter/adapter_model.safetensors"))
        let again = try place.run(place.train("adapter", ["--seed", "8"]))
        #expect(again.status == ExitStatus.cannotCreate.rawValue)
        #expect(again.sentence.contains("--init-adapter") && again.sentence.contains("another --output"))
        #expect(try place.bytes(place.file("adapter/adapter_model.safetensors")) == before)
        _ = try place.json(place.train("adapter", ["--init-adapter", place.file("adapter")]))
        #expect(try place.bytes(place.file("adapter/adapter_model.safetensors")) != before)
    }

    /// The printed command measures what was trained, with words that a shell takes apart as they were.
    @Test func theCommandThatChecksAnAdapterIsWhole() throws {
        let data = place.file("it's data.jsonl")
        try place.write(data, TinyBase.records(4))
        let finished = try place.run(place.train("an adapter", ["--quantize", "nf4", "--compute", "auto", "--data", data]))
        #expect(finished.status == 0, "\(finished.errors)")
        let command = try #require(finished.output.split(separator: "\n").last)
        #expect(command.contains("--adapter '\(place.file("an adapter"))' --data '\(place.file("it'\\''s data.jsonl"))'"))
        #expect(command.contains(" --quantize nf4 --compute auto"))
    }
}
