using System.Text;
using System.Text.Json.Nodes;
using Mustafar.Models.Chat;
using Mustafar.Models.Chat.Jinja;
using Mustafar.Models.Tokenizer;
using Mustafar.Tests.Llama;
using static TorchSharp.torch;

namespace Mustafar.Tests.Damage;

/// <summary>Chat templates and saved chats.</summary>
[TestFixture]
public sealed class DamagedChatTests : DamageFixture
{
    private static readonly ChatTurn[] s_turns =
        [new("system", "Be brief."), new("user", " What is {{ this }}? "), new("assistant", "That.\n", "Hm."), new("user", "\ud83d\ude00")];

    private static IEnumerable<string> Families() =>
        Directory.EnumerateFiles(Path.Combine(Golden.Directory, "jinja", "families"), "*.jinja").Select(Path.GetFileNameWithoutExtension).Order()!;

    [TestCaseSource(nameof(Families))]
    public void Template(string family)
    {
        File.Copy(Path.Combine(Golden.Directory, "jinja", "families", family + ".jinja"), PathOf("chat_template.jinja"));
        File.WriteAllText(PathOf("special_tokens_map.json"), """{ "bos_token": "<|endoftext|>", "eos_token": "<|im_end|>" }""");
        Change("chat_template.jinja", Encode, DamagedBytes.Change);
    }

    [Test]
    public void NamedTemplates() => ChangeJson("tokenizer_config.json", Encode, """
        {
          "chat_template": [{ "name": "default", "template": "{% for message in messages %}{{ bos_token + message['content']|trim }}{% endfor %}" },
            { "name": "tool_use", "template": "{{ messages[0].role }}" }],
          "bos_token": { "content": "<|endoftext|>", "lstrip": false }, "eos_token": "<|im_end|>", "additional_special_tokens": ["<|im_start|>"]
        }
        """);

    [Test]
    public void SavedChat()
    {
        const string Key = "user.chat";
        string path = PathOf("chat");
        using (MustafarCache cache = New())
        {
            using Tensor tokens = randn(1, 1, 3, 64);
            cache.Append(tokens, tokens);
            MustafarCacheFile.Save(path, [cache], "model", new SavedConversation(s_turns, [1, 2, 3]).ToMetadata());
        }

        (string header, byte[] data) = SafetensorsText.Parts(File.ReadAllBytes(path));
        JsonNode root = JsonNode.Parse(header)!;
        string chat = root["__metadata__"]![Key]!.GetValue<string>();
        DamagedJson json = new(chat);
        Change("chat", Load, (_, random) =>
        {
            root["__metadata__"]![Key] = random.Next(3) == 0
                ? Encoding.UTF8.GetString(DamagedBytes.Change(Encoding.UTF8.GetBytes(chat), random))
                : json.Change(random);
            return SafetensorsText.Sealed(root.ToJsonString(), data);
        });

        void Load()
        {
            using MustafarCache cache = New();
            SavedConversation saved = SavedConversation.FromMetadata(
                MustafarCacheFile.Load(path, [cache], "model"), path, TinyCheckpoint.Tokens, cache.Length);
            Assert.That(saved.Tokens, Has.Count.EqualTo(3));
        }

        static MustafarCache New() => new(1, new() { NumKvHeads = 1, HeadDim = 64 }, ScalarType.Float32);
    }

    private void Encode()
    {
        try
        {
            new ChatEncoder(TextTokenizer.Load(Folder), ChatTemplate.Load(Folder)).Encode(s_turns);
        }
        catch (ArgumentException exception) when (exception.InnerException is TemplateRaisedException)
        {
            // The template refuses the turns.
        }
    }
}
