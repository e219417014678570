/// Every bad input is one sentence with a documented exit code, and leaves nothing behind.

import Checkpoints
import FoundationEssentials
import Primitives
import TestSupport
import Testing

@Suite(.serialized) struct BadInputTests {
    let place: Workplace

    init() throws { place = try Workplace() }

    /// Training, evaluating and simulating alike refuse it.
    private func expectRefusal(
        model: String? = nil, data: String? = nil, status: Primitives.ExitStatus = .badData, _ sentence: String,
        _ location: SourceLocation = #_sourceLocation
    ) throws {
        let flags = (model.map { ["--model", $0] } ?? []) + (data.map { ["--data", $0] } ?? [])
        for command in [place.train("out", flags), place.evaluate(flags), place.simulate("out", flags + ["--clients", "1"])] {
            let finished = try place.run(command)
            #expect(finished.status == status.rawValue, "\(finished.errors)", sourceLocation: location)
            #expect(finished.sentence.contains(sentence), "\(finished.errors)", sourceLocation: location)
            #expect(finished.output.isEmpty, sourceLocation: location)
        }
        #expect(!place.exists(place.file("out")), sourceLocation: location)
    }

    @Test func ofData() throws {
        let file = place.file("bad.jsonl")
        try place.write(file, TinyBase.records(2) + "this {is no json\n")
        try expectRefusal(data: file, "bad.jsonl:3: this line is not JSON")
        try place.write(file, "")
        try expectRefusal(data: file, "has no records")
        try place.write(file, #"{"question": "1+1="}"# + "\n")
        try expectRefusal(data: file, "bad.jsonl:1: a record needs \"text\"")
        try expectRefusal(data: "/dev/null", status: .missingInput, "/dev/null is no regular file")
        try expectRefusal(data: place.file("missing.jsonl"), status: .missingInput, "does not exist")
    }

    @Test func aTokenBeyondTheVocabulary() throws {
        let model = try place.damagedModel { folder in
            let far =
                #"{"id":70000,"content":"<far>","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true}"#
            let marker = "\"added_tokens\":["
            let text = TinyBase.tokenizer
            let start = try #require(text.ranges(of: marker).first)
            try place.write(folder + "/tokenizer.json", text[..<start.upperBound] + far + "," + text[start.upperBound...])
        }
        let file = place.file("far.jsonl")
        try place.write(file, TinyBase.records(1) + #"{"prompt": "1+1=", "completion": "<far>"}"# + "\n")
        try expectRefusal(
            model: model, data: file, "far.jsonl:2: the text holds the token 70000, and the model's vocabulary ends at")
    }

    @Test func ofWeights() throws {
        let truncated = try place.damagedModel { folder in
            let path = folder + "/model.safetensors"
            let bytes = try place.bytes(path)
            try bytes.prefix(bytes.count - 100).write(to: URL(filePath: path))
        }
        try expectRefusal(model: truncated, "is not a complete safetensors file")
        let name = "model.layers.0.mlp.up_proj.weight"
        let missing = try place.damagedModel { try rewrite($0) { $0.name == name ? nil : ($0.shape, try $0.floats()) } }
        try expectRefusal(model: missing, "lacks the tensor \(name)")
        let misshapen = try place.damagedModel {
            try rewrite($0) { tensor in
                let values = try tensor.floats()
                guard tensor.name == name else { return (tensor.shape, values) }
                return ([tensor.shape[0] - 1, tensor.shape[1]], Array(values.dropLast(tensor.shape[1])))
            }
        }
        try expectRefusal(model: misshapen, "tensor \(name) has shape")
        try expectRefusal(model: place.file("nowhere"), status: .missingInput, "holds no config.json")
    }

    @Test func ofModelsThatAreNotSupported() throws {
        let architecture = try place.damagedModel { folder in
            let path = folder + "/config.json"
            var configuration = try JSONValue(parsing: try place.bytes(path))
            configuration.set("model_type", .string("mamba"))
            configuration.set("architectures", .array([.string("MambaForCausalLM")]))
            try place.write(path, configuration.compact)
        }
        try expectRefusal(model: architecture, "mamba is not supported")
        let tokenizer = try place.damagedModel { folder in
            var json = try JSONValue(parsing: TinyBase.tokenizer.utf8)
            json.set("normalizer", .object([.init("type", .string("Nmt"))]))
            try place.write(folder + "/tokenizer.json", json.compact)
        }
        try expectRefusal(model: tokenizer, "\"Nmt\" in \"normalizer\" is not supported")
    }

    @Test func ofAdapters() throws {
        #expect(try place.run(place.train("adapter")).status == 0)
        let adapter = place.file("adapter")
        func expectRefusal(_ sentence: String, status: Primitives.ExitStatus = .badData, adapter: String) throws {
            let uses = [
                place.evaluate(["--adapter", adapter]),
                ["model", "generate", "--model", place.model, "--adapter", adapter, "--prompt", "1"],
                ["model", "merge", "--model", place.model, "--adapter", adapter, "--output", place.file("out")],
                place.train("out", ["--init-adapter", adapter]), place.simulate("out", ["--init-adapter", adapter]),
            ]
            for use in uses {
                let finished = try place.run(use)
                #expect(finished.status == status.rawValue, "\(finished.errors)")
                #expect(finished.sentence.contains(sentence), "\(finished.errors)")
            }
            #expect(!place.exists(place.file("out")))
        }
        func changed(_ change: (StoredTensor) throws -> (name: String, shape: [Int], values: [Float])) throws -> String {
            let copy = place.file("adapter-\(UUID().uuidString)")
            try FileManager.default.copyItem(atPath: adapter, toPath: copy)
            let file = try SafetensorsFile(path: adapter + "/adapter_model.safetensors")
            try writeSafetensors(
                copy + "/adapter_model.safetensors", floats: try file.names.map { try change(try #require(file.tensors[$0])) })
            return copy
        }
        try expectRefusal(
            "belongs to another base model: it adapts",
            adapter: try changed { tensor in
                guard tensor.name.hasSuffix("lora_A.weight") else { return (tensor.name, tensor.shape, try tensor.floats()) }
                return (tensor.name, [tensor.shape[0], 8], [Float](repeating: 0, count: tensor.shape[0] * 8))
            })
        try expectRefusal(
            "which this one does not have",
            adapter: try changed { ($0.name.replacing("layers.0.", with: "layers.90."), $0.shape, try $0.floats()) })
        try expectRefusal(
            "holds nan at position 0",
            adapter: try changed { ($0.name, $0.shape, [Float.nan] + (try $0.floats()).dropFirst()) })
        try expectRefusal("holds no adapter_config.json", status: .missingInput, adapter: place.model)
    }

    @Test func ofCommandLines() throws {
        let huge = "4611686018427387904"
        let refusals: [([String], String)] = [
            (place.train("out", ["--rank", "0"]), "rank 0 is not possible"),
            (place.train("out", ["--rank", "4000"]), "rank 4000 is above"),
            (place.train("out", ["--target-modules", "query"]), "target module query is not a linear map"),
            (place.train("out", ["--adapter", "dora"]), "possible are lora, ffa-lora, lora-sb"),
            (place.train("out", ["--sequence-length", "100000"]), "use at most that"),
            (place.train("out", ["--batch-size", "9223372036854775807"]), "at most"),
            (place.train("out", ["--rank", huge]), "rank \(huge) is above"),
            (place.train("out", ["--sequence-length", huge]), "sequence-length is \(huge): at most 16777216"),
            (place.train("out", ["--alpha", "1e300"]), "alpha is a positive number, from 1e-9 to 1e9"),
            (place.train("out", ["--learning-rate", "1e300"]), "learning-rate is 1e+300: at most 1000000"),
            (place.simulate("out", ["--ranks", huge]), "rank \(huge) is above"),
            (place.simulate("out", ["--sequence-length", huge]), "sequence-length is \(huge): at most 16777216"),
            (["model", "inspect", place.model, "--plan", "--rank", huge], "rank \(huge) is above"),
            (["model", "inspect", place.model, "--plan", "--sequence-length", huge], "at most 16777216"),
            (["bench", "train", "--model", place.model, "--rank", huge], "rank \(huge) is above"),
            (
                [
                    "model", "quantize", "--model", place.model, "--quantize", "nf4", "--start", "loftq", "--start-output",
                    place.file("start"), "--rank", huge, "--output", place.file("out"),
                ], "rank \(huge) is above"
            ),
            (place.train("out", ["--adapter", "lora-sb", "--rank-stabilized"]), "--rank-stabilized is not used by lora-sb"),
            (place.train("out", ["--output", ""]), "the output has an empty name"),
            (place.evaluate(["--quantize", "int4"]), "possible are stored, none, int8, nf4"),
            (place.evaluate(["--exact-match", "0"]), "at least 1"),
            (
                ["model", "quantize", "--model", place.model, "--quantize", "gptq", "--output", place.file("out")],
                "can be written in nf4 or fp4"
            ),
            (
                [
                    "model", "quantize", "--model", place.model, "--quantize", "nf4", "--block", "48", "--output",
                    place.file("out"),
                ], "--block is 48"
            ),
            (place.train("out", ["--start", "xs"]), "--start xs means nothing to lora: possible are zero, loftq"),
            (place.train("out", ["--unquantized-model", place.model]), "means nothing without --start loftq"),
            (place.train("out", ["--start", "loftq"]), "is not quantized and quantize is stored"),
            (["model", "inspect", place.model, "--rank", "4"], "--rank means nothing without --plan"),
            (["model", "inspect", place.model, "--memory-limit", "1GiB"], "--memory-limit means nothing without --plan"),
            (["model", "inspect", place.model, "--plan", "--sequence-length", "100000"], "use at most that"),
            (["model", "inspekt"], "inspekt"), (["model", "eval", "--model", place.model], "--data"),
        ]
        for (command, sentence) in refusals {
            let finished = try place.run(command)
            #expect(finished.status == ExitStatus.usage.rawValue, "\(command): \(finished.errors)")
            #expect(finished.sentence.contains(sentence), "\(command): \(finished.errors)")
        }
        #expect(!place.exists(place.file("out")))
    }

    @Test func outputsThatCannotBeMadeOrWouldBeLost() throws {
        try FileManager.default.createDirectory(atPath: place.file("full"), withIntermediateDirectories: true)
        try place.write(place.file("full/thesis.txt"), "months of work")
        for command in [
            place.train("full"),
            ["model", "quantize", "--model", place.model, "--quantize", "nf4", "--output", place.file("full")],
            place.train("eval.jsonl"),
            place.simulate("eval.jsonl"), place.train("eval.jsonl/below"),
        ] {
            let finished = try place.run(command)
            #expect(finished.status == ExitStatus.cannotCreate.rawValue, "\(command): \(finished.errors)")
        }
        #expect(try place.text(place.file("full/thesis.txt")) == "months of work")
    }

    /// Writes the folder's tensors again, each with the shape and values that `change` gives; nil leaves it out.
    private func rewrite(_ folder: String, _ change: (StoredTensor) throws -> (shape: [Int], values: [Float])?) throws {
        let path = folder + "/model.safetensors"
        let file = try SafetensorsFile(path: path)
        var tensors: [(name: String, shape: [Int], values: [Float])] = []
        for name in file.names {
            let tensor = try #require(file.tensors[name])
            if let (shape, values) = try change(tensor) { tensors.append((name, shape, values)) }
        }
        try writeSafetensors(path, floats: tensors)
    }
}
