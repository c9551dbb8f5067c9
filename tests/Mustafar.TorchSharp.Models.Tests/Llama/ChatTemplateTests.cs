using System.Text.Json.Nodes;
using Mustafar.Models.Chat;
using Mustafar.Models.Checkpoint;

namespace Mustafar.Tests.Llama;

/// <summary>Chat templates: where they are found, what they get, and how they fail. What they write: see ChatEncoderTests.</summary>
[TestFixture]
internal sealed class ChatTemplateTests
{
    private static readonly ChatTurn s_user = new(ChatRoles.User, "Hi");

    private TemporaryDirectory _directory = null!;

    [SetUp]
    public void MakeDirectory() => _directory = new TemporaryDirectory();

    [TearDown]
    public void DeleteDirectory() => _directory.Dispose();

    [Test]
    public void FilesComeBeforeTheConfigOfTheTokenizer()
    {
        Assert.That(() => Load(), Throws.TypeOf<UnsupportedModelException>().With.Message.Contains("no chat template").And.Message.Contains("--chat-template"));
        Config("\"text\"");
        Assert.That(Load(), Is.EqualTo("text"));
        Config("""[{ "name": "rag", "template": "list rag" }, { "name": "default", "template": "list default" }]""");
        Assert.That(Load(), Is.EqualTo("list default"));
        Assert.That(Load("rag"), Is.EqualTo("list rag"));
        Directory.CreateDirectory(_directory.File("additional_chat_templates"));
        File.WriteAllText(_directory.File("additional_chat_templates/tool_use.jinja"), "file tool_use");
        Assert.That(Load("tool_use"), Is.EqualTo("file tool_use"));
        Assert.That(
            () => Load(),
            Throws.TypeOf<UnsupportedModelException>().With.Message.Contains("chat templates tool_use, but none is the default"),
            "files replace the whole list");
        File.WriteAllText(_directory.File("chat_template.jinja"), "\uFEFFfile\r\n{{ messages[0].content }}\n");
        Assert.That(Load(), Is.EqualTo("file\nHi"), "as jinja2 has it: line ends are \\n, and the last goes");
    }

    [Test]
    public void ANameMayBeOfTheCheckpointBuiltInOrAFile()
    {
        Config("""[{ "name": "chatml", "template": "own" }]""");
        File.WriteAllText(_directory.File("other.txt"), "from a file");
        using (Assert.EnterMultipleScope())
        {
            Assert.That(Load("chatml"), Is.EqualTo("own"));
            Assert.That(Load("mistral"), Is.EqualTo("<s>[INST] Hi [/INST]"));
            Assert.That(Load(_directory.File("other.txt")), Is.EqualTo("from a file"));
            Assert.That(ChatTemplate.BuiltInNames, Is.EquivalentTo(new[] { "llama3", "mistral", "chatml" }));
            Assert.That(
                () => Load("jinja"),
                Throws.ArgumentException.With.Message.Contains("llama3, mistral, chatml").And.Message.Contains("(chatml)").And.Message.Contains("'jinja'"));
            Assert.That(() => Load(_directory.Path), Throws.InstanceOf<CheckpointException>(), "a directory");
        }
    }

    [TestCase("5", "expected a text or a list as 'chat_template', but got 5")]
    [TestCase("""[{ "name": "default" }]""", "'template'")]
    [TestCase("""[{ "template": "" }]""", "'name'")]
    [TestCase("[\"x\"]", "'name'")]
    [TestCase("\"\\ud800\"", "'chat_template'")]
    public void ADamagedConfigIsTold(string value, string problem)
    {
        Config(value);
        Assert.That(
            () => Load(), Throws.TypeOf<CheckpointException>().With.Message.Contains(problem).And.Message.Contains("tokenizer_config.json"));
    }

    [Test]
    public void ADamagedFileIsTold()
    {
        string path = _directory.File("chat_template.jinja");
        File.WriteAllBytes(path, [0x7B, 0xFF]);
        Assert.That(() => Load(), Throws.TypeOf<CheckpointException>().With.Message.StartsWith($"{path}: expected a chat template in UTF-8"));
        File.WriteAllText(path, "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n");
        Assert.That(() => Load(), Throws.TypeOf<CheckpointException>().With.Message.Contains("git lfs pull"));
    }

    [TestCase("a\n{% if %}", "line 2")]
    [TestCase("a\nb\n{{ messages[0].content | frobnicate }}", "line 3")]
    [TestCase("{% include 'x' %}", "line 1")]
    [TestCase("{{ 1 / 0 }}", "line 1")]
    [TestCase("{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}", "")]
    public void WhatCannotBeRenderedIsToldWithTheLineAndTheOption(string program, string line)
    {
        string path = _directory.File("chat_template.jinja");
        File.WriteAllText(path, program);
        Assert.That(
            () => Load(),
            Throws.TypeOf<UnsupportedModelException>().With.Message.StartsWith($"{path}: the chat template can't be rendered: ")
                .And.Message.Contains(line).And.Message.Contains("--chat-template").And.Message.Not.Contains("Exception"));
    }

    [Test]
    public void WhatATemplateRefusesIsAnErrorOfItsMessages()
    {
        File.WriteAllText(_directory.File("chat_template.jinja"), "{{ raise_exception('No ' + messages[0].role + ' here') }}");
        Assert.That(() => Load(), Throws.ArgumentException.With.Message.Contains("does not accept the messages: No user here"));
    }

    [Test]
    public void TemplatesGetTheVariablesOfTransformers()
    {
        const string all =
            "{{ bos_token }}|{{ eos_token }}|{{ unk_token }}|{{ pad_token is defined }}|{{ additional_special_tokens }}|{{ tools }}|{{ documents }}|{{ add_generation_prompt }}";
        File.WriteAllText(_directory.File("chat_template.jinja"), all);
        Assert.That(Load(), Is.EqualTo("|||False||None|None|True"));
        File.WriteAllText(_directory.File("special_tokens_map.json"), """{ "bos_token": "<map>", "eos_token": { "content": "<end>" }, "additional_special_tokens": ["<a>", { "content": "<b>" }] }""");
        Assert.That(Load(), Is.EqualTo("<map>|<end>||False|['<a>', '<b>']|None|None|True"));
        File.WriteAllText(_directory.File("tokenizer_config.json"), """{ "tokenizer_class": "LlamaTokenizerFast", "bos_token": { "__type": "AddedToken", "content": "<s>" }, "pad_token": null }""");
        Assert.That(Load(), Is.EqualTo("<s>|<end>|<unk>|False|['<a>', '<b>']|None|None|True"));
        File.WriteAllText(_directory.File("tokenizer_config.json"), """{ "bos_token": 7 }""");
        Assert.That(() => Load(), Throws.TypeOf<CheckpointException>().With.Message.Contains("'bos_token'"));
    }

    [Test]
    public void FurtherVariablesAreTheCallers()
    {
        File.WriteAllText(_directory.File("chat_template.jinja"), "{{ enable_thinking }} {{ documents }} {{ bos_token }} {{ messages | length }}");
        ChatTemplate template = ChatTemplate.Load(_directory.Path);
        using (Assert.EnterMultipleScope())
        {
            Assert.That(Render("enable_thinking", false), Is.EqualTo("False None  1"));
            Assert.That(Render("documents", JsonNode.Parse("""[{ "text": "a" }]""")), Is.EqualTo(" [{'text': 'a'}]  1"));
            Assert.That(Render("bos_token", "<s>"), Is.EqualTo(" None <s> 1"));
            Assert.That(() => Render("messages", "x"), Throws.ArgumentException.With.Message.Contains("'messages'"));
            Assert.That(() => Render("add_generation_prompt", false), Throws.ArgumentException.With.Message.Contains("'add_generation_prompt'"));
            Assert.That(() => Render("date", DateTime.Now), Throws.ArgumentException.With.Message.Contains("'date'").And.Message.Contains("DateTime"));
        }

        string Render(string name, object? value) => template.Render([s_user], variables: new Dictionary<string, object?> { [name] = value });
    }

    [Test]
    public void ReasoningIsAKeyOfItsOwn()
    {
        File.WriteAllText(_directory.File("chat_template.jinja"), "{% for m in messages %}{{ m }}{% endfor %}");
        Assert.That(
            ChatTemplate.Load(_directory.Path).Render([s_user, new ChatTurn(ChatRoles.Assistant, "Yes", "Hm")]),
            Is.EqualTo("{'role': 'user', 'content': 'Hi'}{'role': 'assistant', 'content': 'Yes', 'reasoning_content': 'Hm'}"));
    }

    private void Config(string template) =>
        File.WriteAllText(_directory.File("tokenizer_config.json"), $$"""{ "chat_template": {{template}} }""");

    private string Load(string? name = null) => ChatTemplate.Load(_directory.Path, name).Render([s_user]);
}
