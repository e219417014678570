/// BERT and RoBERTa folders: names as they are stored, positions, heads, and what is refused.

import Checkpoints
import Primitives
import TestSupport
import Testing

@Suite struct EncoderFolderTests {
    let folder = TemporaryFolder()
    static let text = """
        {"architectures":["BertForMaskedLM"],"model_type":"bert","hidden_size":8,"intermediate_size":12,"num_hidden_layers":1,
        "num_attention_heads":2,"vocab_size":20,"max_position_embeddings":10,"layer_norm_eps":1e-12,"hidden_act":"gelu",
        "type_vocab_size":2,"pad_token_id":0}
        """

    @Test(arguments: ["bert-classifier", "roberta-classifier"]) func `a golden folder is read as its configuration says`(
        name: String
    ) throws {
        let path = Golden.path("models/" + name)
        let json = try readJSON(path + "/config.json")
        let checkpoint = try CheckpointFolder(path: path)
        let configuration = checkpoint.configuration
        let encoder = try #require(configuration.encoder)
        let family = try #require(json["model_type"]?.text)
        #expect(configuration.isEncoder && encoder.prefix == family + ".")
        let pad = try #require(json["pad_token_id"]?.int)
        #expect(encoder.firstPosition == (family == "bert" ? 0 : pad + 1))
        #expect(configuration.maximumPositions + encoder.firstPosition == json["max_position_embeddings"]?.int)
        #expect(configuration.linearMaps.count == 6 * configuration.layerCount)
        #expect(configuration.linearMaps.allSatisfy { checkpoint.hasTensor($0.name + ".weight") && configuration.hasBias($0) })
        #expect(encoder.labels.count == json["id2label"]?.members?.count ?? 0)
        // Everything in the file is used: the encoder, the pooler or none, and the head.
        let head = configuration.head(labelCount: try #require(checkpoint.headLabelCount))
        #expect(head.map(\.name) == (family == "bert" ? ["classifier"] : ["classifier.dense", "classifier.out_proj"]))
        let stored = try checkpoint.tensorNames.reduce(0) { $0 + (try checkpoint.tensor($1)).count }
        #expect(checkpoint.parameterCount + head.reduce(0) { $0 + $1.outputs * ($1.inputs + 1) } == stored)
    }

    /// A folder with the tensors that the configuration needs, named by `rename`.
    private func write(_ json: JSONValue, to path: String, rename: (String) -> String? = { $0 }) throws {
        makeFolders(path)
        try writeFile(path + "/config.json", Array(json.pretty.utf8))
        let configuration = try ModelConfiguration(folder: path)
        let shapes =
            configuration.denseTensors
            + configuration.linearMaps.map { (name: $0.name + ".weight", shape: [$0.outputs, $0.inputs]) }
        let tensors = shapes.compactMap { name, shape in
            rename(name).map {
                (name: $0, shape: shape, values: [Float](repeating: 0.5, count: shape.reduce(1, *)))
            }
        }
        try writeSafetensors(path + "/model.safetensors", floats: tensors)
    }

    @Test func `names are those of the file, and the class decides what the classifier reads`() throws {
        var json = try JSONValue(parsing: Self.text.utf8)
        try write(json, to: folder.file("class"))
        var configuration = try CheckpointFolder(path: folder.file("class")).configuration
        #expect(configuration.encoder?.summary == .pooler && configuration.pooler?.name == "bert.pooler.dense")
        #expect(configuration.linearMaps[3].name == "bert.encoder.layer.0.attention.output.dense")

        // As google-bert/bert-base-uncased stores its norms.
        try write(json, to: folder.file("old")) {
            $0.replacing("LayerNorm.weight", with: "LayerNorm.gamma").replacing("LayerNorm.bias", with: "LayerNorm.beta")
        }
        configuration = try CheckpointFolder(path: folder.file("old")).configuration
        #expect(configuration.encoder?.normWeightName == "gamma" && configuration.encoder?.normBiasName == "beta")

        let failure = #expect(throws: Failure.self) {
            try write(json, to: folder.file("poolerless")) { $0.contains("pooler") ? nil : $0 }
            _ = try CheckpointFolder(path: folder.file("poolerless"))
        }
        #expect(failure?.message.contains("bert.pooler.dense.weight") == true && failure?.message.contains("pooler, so") == true)

        json.set("architectures", .array([.string("BertModel")]))
        try write(json, to: folder.file("bare"))
        let bare = try CheckpointFolder(path: folder.file("bare"))
        #expect(bare.configuration.encoder?.summary == .mean && bare.configuration.pooler == nil && bare.headLabelCount == nil)
        #expect(bare.configuration.linearMaps[0].name == "encoder.layer.0.attention.self.query")
        #expect(bare.configuration.head(labelCount: 5) == [LinearMap(name: "classifier", outputs: 5, inputs: 8)])
        let other = try CheckpointFolder(path: folder.file("class"))
        #expect(try bare.baseDigest(cache: nil) != other.baseDigest(cache: nil))
    }

    @Test(arguments: [
        ("hidden_act", "\"gelu_new\"", "hidden_act is gelu_new"), ("hidden_act", "\"relu\"", "hidden_act is relu"),
        ("position_embedding_type", "\"relative_key\"", "position_embedding_type is relative_key"),
        ("is_decoder", "true", "is_decoder is true"), ("layer_norm_eps", "0", "layer_norm_eps is 0"),
        ("num_attention_heads", "3", "no multiple of num_attention_heads 3"),
        ("architectures", "[\"BertForTokenClassification\"]", "BertForTokenClassification"),
        ("pad_token_id", "20", "pad_token_id is 20"), ("type_vocab_size", "0", "type_vocab_size is 0"),
        ("quantization_config", "{\"quant_method\":\"gptq\",\"bits\":4}", "quant_method is gptq"),
    ])
    func `what would be computed wrongly is refused by name`(key: String, value: String, words: String) throws {
        for family in ["bert", "roberta"] where key != "architectures" || family == "bert" {
            var json = try JSONValue(parsing: Self.text.utf8)
            json.set("model_type", .string(family))
            json.set("architectures", .null)
            _ = try ModelConfiguration(json: json, path: "config.json")
            json.set(key, try JSONValue(parsing: value.utf8))
            let failure = #expect(throws: Failure.self) { try ModelConfiguration(json: json, path: "config.json") }
            #expect(failure?.message.contains(words) == true, "\(failure?.message ?? "")")
            #expect(failure?.message.hasPrefix("config.json: ") == true)
        }
    }

    @Test func `labels are read in the order of their numbers, or not at all`() throws {
        var json = try JSONValue(parsing: Self.text.utf8)
        func labels(_ text: String) throws -> [String]? {
            json.set("id2label", try JSONValue(parsing: text.utf8))
            return try ModelConfiguration(json: json, path: "x").encoder?.labels
        }
        #expect(try labels(#"{"1": "b", "0": "a"}"#) == ["a", "b"])
        #expect(try labels(#"{"1": "b", "2": "a"}"#) == [])
        #expect(try labels(#"{"1": 3, "0": "a"}"#) == [])
        #expect(try labels("null") == [])
    }
}
