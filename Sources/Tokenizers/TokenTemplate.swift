/// The special tokens that the tokenizer itself puts around a text: "post_processor".

import Primitives

struct TokenTemplate: Sendable, Equatable {
    var prefix: [Int32] = []
    var suffix: [Int32] = []

    private static let mostTokens = 1024

    init(_ part: FilePart?) throws(Failure) {
        guard let part else { return }
        let parts = try part.type() == "Sequence" ? part.parts("processors") : [part]
        var found = false
        for processor in parts {
            switch try processor.type() {
            case "ByteLevel": continue  // moves offsets only
            case "TemplateProcessing", "BertProcessing", "RobertaProcessing":
                if found { throw part.unsupported("a second template") }
                found = true
                if try processor.type() == "TemplateProcessing" {
                    try readTemplate(processor)
                } else {
                    prefix = [try Self.pair("cls", processor)]
                    suffix = [try Self.pair("sep", processor)]
                }
            case let type: throw processor.unsupported("the type \"\(type)\"")
            }
        }
    }

    /// The id in ["[CLS]", 101].
    private static func pair(_ key: String, _ part: FilePart) throws(Failure) -> Int32 {
        let pair = try part.required(key)
        guard let elements = pair.value.elements, elements.count == 2, let content = elements[0].text else {
            throw pair.wrong("a token and its id")
        }
        return try pair.tokenID(elements[1], "\"\(content)\" in \"\(pair.name)\"")
    }

    private mutating func readTemplate(_ part: FilePart) throws(Failure) {
        var isBeforeText = true
        let elements = try part.parts("single")
        func tooMany() -> Failure {
            part.failure("\"\(part.name)\" puts more than \(Self.mostTokens) tokens around a text: not supported")
        }
        guard elements.count <= Self.mostTokens else { throw tooMany() }
        for element in elements {
            if let sequence = element.part("Sequence") {
                guard isBeforeText, try sequence.text("id") == "A" else {
                    throw element.failure(
                        "\"\(part.name).single\" must hold the text, $A, once and nothing else but special tokens")
                }
                isBeforeText = false
            } else {
                let name = try element.required("SpecialToken").text("id")
                guard let token = part.part("special_tokens")?.part(name) else {
                    throw part.failure("\"\(part.name).special_tokens\" lacks \"\(name)\"")
                }
                for id in try token.parts("ids") {
                    let id = try id.tokenID(id.value, "\"\(name)\" in \"\(part.name)\"")
                    if isBeforeText { prefix.append(id) } else { suffix.append(id) }
                }
                guard prefix.count + suffix.count <= Self.mostTokens else { throw tooMany() }
            }
        }
        if isBeforeText { throw part.failure("\"\(part.name).single\" does not hold the text, $A") }
    }
}
