/// Model folders: configurations read right or refused by name, tensors checked, digests independent of the files.

import Checkpoints
import Glibc
import Primitives
import TestSupport
import Testing

@Suite struct CheckpointFolderTests {
    static let causal = ["llama-gqa", "llama3-rope-scaled-tied", "qwen2-bias", "qwen3-qknorm"]
    let folder = TemporaryFolder()

    func golden(_ name: String) throws -> (json: JSONValue, checkpoint: CheckpointFolder) {
        let path = Golden.path("models/" + name)
        return (try readJSON(path + "/config.json"), try CheckpointFolder(path: path))
    }

    @Test(arguments: causal) func aGoldenFolderIsReadAsItsConfigurationSays(_ name: String) throws {
        let (json, checkpoint) = try golden(name)
        let configuration = checkpoint.configuration
        #expect(configuration.vocabularySize == json["vocab_size"]?.int)
        #expect(configuration.hiddenSize == json["hidden_size"]?.int)
        #expect(configuration.layerCount == json["num_hidden_layers"]?.int)
        #expect(configuration.keyValueHeadCount == json["num_key_value_heads"]?.int)
        #expect(configuration.tieWordEmbeddings == json["tie_word_embeddings"]?.bool)
        #expect(configuration.linearMaps.count == 7 * configuration.layerCount)
        #expect(configuration.attentionBias == (name == "qwen2-bias") && !configuration.outputBias)
        #expect(configuration.queryKeyNorm == (name == "qwen3-qknorm"))
        let stored = try checkpoint.tensorNames.reduce(0) { $0 + (try checkpoint.tensor($1)).count }
        #expect(checkpoint.parameterCount == stored)
        if name == "llama3-rope-scaled-tied" {
            let rope = json["rope_parameters"]!
            #expect(
                configuration.ropeScaling
                    == .llama3(
                        factor: rope["factor"]!.double!, lowFrequencyFactor: rope["low_freq_factor"]!.double!,
                        highFrequencyFactor: rope["high_freq_factor"]!.double!,
                        originalMaximumPositions: rope["original_max_position_embeddings"]!.int!))
        } else {
            #expect(configuration.ropeScaling == nil)
        }
    }

    @Test func bothSpellingsOfRotaryPositionsAreEqual() throws {
        let (json, checkpoint) = try golden("llama3-rope-scaled-tied")
        var old = json
        var section = json["rope_parameters"]!
        old.set("rope_theta", section["rope_theta"]!)
        section = .object(section.members!.filter { $0.key != "rope_theta" })
        old.set("rope_scaling", section)
        old = .object(old.members!.filter { $0.key != "rope_parameters" })
        let generation = try readJSON(checkpoint.path + "/generation_config.json")
        #expect(try ModelConfiguration(json: old, path: "old", generation: generation) == checkpoint.configuration)
    }

    @Test func endTokensComeFromBothFilesWithTheConfigurationsFirst() throws {
        var (json, _) = try golden("llama-gqa")
        let generation = try JSONValue(parsing: "{\"eos_token_id\":[7,5]}".utf8)
        json.set("eos_token_id", .integer(5))
        #expect(try ModelConfiguration(json: json, path: "x", generation: generation).endTokens == [5, 7])
        json.set("eos_token_id", .null)
        #expect(try ModelConfiguration(json: json, path: "x", generation: generation).endTokens == [7, 5])
        #expect(try ModelConfiguration(json: json, path: "x").endTokens == [])
        json.set("eos_token_id", .integer(1 << 20))
        #expect(throws: Failure.self) { try ModelConfiguration(json: json, path: "x") }
    }

    @Test(arguments: [
        ("model_type", "\"gpt2\"", "model_type gpt2 is not supported"), ("hidden_act", "\"gelu\"", "hidden_act is gelu"),
        ("rope_parameters", "{\"rope_type\":\"yarn\",\"factor\":4.0}", "rope_type is yarn"),
        ("rope_parameters", "{\"rope_type\":\"llama3\",\"factor\":4.0}", "low_freq_factor is missing"),
        ("rope_parameters", "{\"full_attention\":{\"rope_theta\":1.0}}", "full_attention"),
        ("rope_parameters", "{\"rope_theta\":1.0,\"partial_rotary_factor\":0.5}", "partial_rotary_factor is 0.5"),
        ("partial_rotary_factor", "0.25", "partial_rotary_factor is 0.25"),
        ("quantization_config", "{\"quant_method\":\"gptq\",\"bits\":4}", "quant_method is gptq"),
        ("quantization_config", "{\"quant_method\":\"bitsandbytes\",\"load_in_4bit\":false}", "neither load_in_4bit nor"),
        ("hidden_size", "\"64\"", "hidden_size is \"64\""), ("hidden_size", "0", "hidden_size is 0"),
        ("num_hidden_layers", "1e30", "num_hidden_layers is 1e30"), ("vocab_size", "null", "vocab_size is missing"),
        ("num_key_value_heads", "3", "no multiple of num_key_value_heads 3"), ("head_dim", "15", "head_dim is 15"),
        ("architectures", "[\"LlamaForSequenceClassification\"]", "LlamaForSequenceClassification"),
    ])
    func whatWouldBeComputedWronglyIsRefusedByName(_ key: String, _ value: String, _ words: String) throws {
        var json = try JSONValue(
            parsing: """
                {"model_type":"llama","hidden_size":64,"intermediate_size":128,"num_hidden_layers":2,"num_attention_heads":4,
                "num_key_value_heads":2,"vocab_size":320,"max_position_embeddings":128,"rms_norm_eps":1e-05,"hidden_act":"silu"}
                """.utf8)
        _ = try ModelConfiguration(json: json, path: "config.json")
        json.set(key, try JSONValue(parsing: value.utf8))
        let failure = #expect(throws: Failure.self) { try ModelConfiguration(json: json, path: "config.json") }
        #expect(failure?.message.contains(words) == true, "\(failure?.message ?? "")")
        #expect(failure?.message.hasPrefix("config.json: ") == true)
    }

    @Test func slidingWindowsAreRefusedOnlyWhereTheyAct() throws {
        var mistral = try golden("llama-gqa").json
        mistral.set("model_type", .string("mistral"))
        mistral.set("max_position_embeddings", .integer(32768))
        #expect(throws: Failure.self) { try ModelConfiguration(json: mistral, path: "x") }
        mistral.set("sliding_window", .null)
        #expect(try ModelConfiguration(json: mistral, path: "x").architecture == .llama)
        mistral.set("sliding_window", .integer(4096))
        #expect(throws: Failure.self) { try ModelConfiguration(json: mistral, path: "x") }
        var qwen = try golden("qwen2-bias").json
        qwen.set("layer_types", .array([.string("full_attention"), .string("sliding_attention")]))
        #expect(throws: Failure.self) { try ModelConfiguration(json: qwen, path: "x") }
    }

    /// The golden folder's tensors, some left out or changed, in new files.
    func copy(
        _ name: String, to target: String, shards: Int = 1, changing change: (String, [Int]) -> [Int]? = { $1 }
    ) throws {
        let (_, checkpoint) = try golden(name)
        makeFolders(target)
        try writeFile(target + "/config.json", try readFile(checkpoint.path + "/config.json"))
        try writeFile(target + "/generation_config.json", try readFile(checkpoint.path + "/generation_config.json"))
        var parts = [[(name: String, type: TensorType, shape: [Int], bytes: [UInt8])]](repeating: [], count: shards)
        var index: [JSONValue.Member] = []
        for (number, name) in checkpoint.tensorNames.enumerated() {
            let tensor = try checkpoint.tensor(name)
            guard let shape = change(name, tensor.shape) else { continue }
            let count = shape.reduce(tensor.dtype.size, *)
            parts[number % shards].append((name, tensor.dtype, shape, Array(tensor.bytes.prefix(count))))
            index.append(.init(name, .string("part-\(number % shards).safetensors")))
        }
        if shards == 1 {
            try writeSafetensors(target + "/model.safetensors", tensors: parts[0])
        } else {
            for (number, part) in parts.enumerated() {
                try writeSafetensors(target + "/part-\(number).safetensors", tensors: part)
            }
            try writeFile(
                target + "/model.safetensors.index.json",
                Array(JSONValue.object([.init("weight_map", .object(index))]).pretty.utf8))
        }
    }

    @Test func theBaseDigestIgnoresShardingAndSeesEveryChange() throws {
        let whole = try golden("llama-gqa").checkpoint
        try copy("llama-gqa", to: folder.file("sharded"), shards: 3)
        let sharded = try CheckpointFolder(path: folder.file("sharded"))
        #expect(sharded.weightFiles.count == 3)
        let cache = folder.file("cache")
        let digest = try whole.baseDigest(cache: nil)
        #expect(try sharded.baseDigest(cache: nil) == digest)
        #expect(try whole.baseDigest(cache: cache) == digest)
        #expect(try listFolder(cache).count == 1)
        #expect(try whole.baseDigest(cache: cache) == digest)

        // One bit of one tensor.
        let part = folder.file("sharded/part-1.safetensors")
        var bytes = try readFile(part)
        bytes[bytes.count - 1] ^= 1
        try writeFile(part, bytes)
        #expect(try CheckpointFolder(path: folder.file("sharded")).baseDigest(cache: cache) != digest)
        // One number of the configuration.
        try copy("llama-gqa", to: folder.file("configured"))
        var json = try readJSON(folder.file("configured/config.json"))
        json.set("rms_norm_eps", .number("2e-05"))
        try writeFile(folder.file("configured/config.json"), Array(json.pretty.utf8))
        #expect(try CheckpointFolder(path: folder.file("configured")).baseDigest(cache: cache) != digest)
    }

    @Test func aMissingOrMisshapenTensorIsNamed() throws {
        let victim = "model.layers.1.self_attn.k_proj.weight"
        try copy("llama-gqa", to: folder.file("a")) { name, shape in name == victim ? nil : shape }
        var failure = #expect(throws: Failure.self) { try CheckpointFolder(path: folder.file("a")) }
        #expect(failure?.message.contains("lacks the tensor \(victim)") == true)
        try copy("llama-gqa", to: folder.file("b")) { name, shape in name == victim ? [shape[0] - 1, shape[1]] : shape }
        failure = #expect(throws: Failure.self) { try CheckpointFolder(path: folder.file("b")) }
        #expect(failure?.message.contains("tensor \(victim) has shape") == true)
        try copy("llama-gqa", to: folder.file("c"), shards: 2)
        unlink(folder.file("c/part-1.safetensors"))
        failure = #expect(throws: Failure.self) { try CheckpointFolder(path: folder.file("c")) }
        #expect(failure?.message.contains("part-1.safetensors does not exist") == true)
        failure = #expect(throws: Failure.self) { try CheckpointFolder(path: folder.file("nowhere")) }
        #expect(failure?.status == .missingInput)
    }

    @Test func anIndexCannotLeaveItsFolder() throws {
        try copy("llama-gqa", to: folder.file("c"), shards: 2)
        let index = "{\"weight_map\":{\"lm_head.weight\":\"../secret.safetensors\"}}"
        try writeFile(folder.file("c/model.safetensors.index.json"), Array(index.utf8))
        let failure = #expect(throws: Failure.self) { try CheckpointFolder(path: folder.file("c")) }
        #expect(failure?.message.contains("is no file name") == true)
    }

    @Test func aCheckpointInFourBitsIsAcceptedAndItsPartsAreChecked() throws {
        let checkpoint = try CheckpointFolder(path: Golden.path("quant/bnb4bit-llama"))
        #expect(checkpoint.configuration.quantization?.type == "nf4")
        for map in checkpoint.configuration.linearMaps { #expect(checkpoint.isBitsAndBytes4Bit(map.name)) }
        makeFolders(folder.file("q"))
        for name in try listFolder(checkpoint.path) {
            try writeFile(folder.file("q/" + name), try readFile(checkpoint.path + "/" + name))
        }
        let map = checkpoint.configuration.linearMaps[0].name + ".weight"
        for (part, words) in [
            (".absmax", "absmax is missing"), (".quant_map", "quant_map"), (".nested_absmax", "nested_absmax"),
            (".nested_quant_map", "nested_quant_map"), (".quant_state.bitsandbytes__nf4", "quant_state"),
        ] {
            let tensors = try checkpoint.tensorNames.filter { $0 != map + part }.map { try checkpoint.tensor($0) }
            try writeSafetensors(
                folder.file("q/model.safetensors"), tensors: tensors.map { ($0.name, $0.dtype, $0.shape, Array($0.bytes)) })
            let failure = #expect(throws: Failure.self) { try CheckpointFolder(path: folder.file("q")) }
            #expect(failure?.message.contains(words) == true, "\(failure?.message ?? "")")
        }
    }

    @Test func aFolderIsReplacedOnlyIfItHoldsNothingElse() throws {
        let target = folder.file("out")
        let ours = { (name: String) in name.hasPrefix("adapter_") }
        for text in ["one", "two"] {
            try writeFolder(target, replacing: ours) { (temporary) throws(Failure) in
                try writeFile(temporary + "/adapter_config.json", Array(text.utf8))
            }
            #expect(try readFile(target + "/adapter_config.json") == Array(text.utf8))
        }
        #expect(throws: Failure(.badData, "stop")) {
            try writeFolder(target, replacing: ours) { (_) throws(Failure) in throw Failure(.badData, "stop") }
        }
        try writeFile(target + "/thesis.txt", [1])
        let failure = #expect(throws: Failure.self) { try writeFolder(target, replacing: ours) { (_) throws(Failure) in } }
        #expect(failure?.message.contains("thesis.txt") == true)
        #expect(try listFolder(folder.path) == ["out"])
    }

    @Test func twoFoldersArePutInPlaceTogetherOrNeither() throws {
        func stage(_ name: String, _ byte: UInt8) throws -> FolderWriting {
            try stageFolder(folder.file(name), replacing: { $0 == "file" }) { (temporary) throws(Failure) in
                try writeFile(temporary + "/file", [byte])
            }
        }
        for byte: UInt8 in [1, 2] {
            let both = [try stage("a", byte), try stage("b", byte)]
            try putInPlace(both)
            for name in ["a", "b"] { #expect(try readFile(folder.file(name + "/file")) == [byte]) }
        }
        // The last one's bytes are lost before it can be put in place: one folder was there before, one was not.
        let staged = [try stage("a", 3), try stage("new", 3), try stage("b", 3)]
        staged[2].discard()
        let failure = #expect(throws: Failure.self) { try putInPlace(staged) }
        #expect(failure?.status == .cannotCreate && failure?.message.contains(folder.file("b")) == true)
        for name in ["a", "b"] { #expect(try readFile(folder.file(name + "/file")) == [2]) }
        #expect(try listFolder(folder.path) == ["a", "b"])
    }

    @Test func aPathIsAbsoluteBeforeAnythingIsThere() throws {
        let place = absolutePath(folder.path)
        #expect(absolutePath(folder.file("new/folder")) == place + "/new/folder")
        #expect(absolutePath(folder.path + "/") == place && absolutePath("/nowhere-at-all") == "/nowhere-at-all")
        #expect(absolutePath("nowhere-at-all") == absolutePath(".") + "/nowhere-at-all")
    }
}
