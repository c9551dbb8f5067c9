using System.Text.Json;
using Mustafar.Models.Chat.Jinja;

namespace Mustafar.Tests.Llama.Jinja;

/// <summary>Templates against what Python's jinja2 gave for them; golden/jinja/make_golden.py tells how.</summary>
[TestFixture]
internal sealed class JinjaGoldenTests
{
    private static readonly DateTime s_now = new(2026, 2, 3, 14, 5, 9);

    private static string Folder => Path.Combine(Golden.Directory, "jinja");

    private static IEnumerable<TestCaseData> Cases()
    {
        using JsonDocument document = JsonDocument.Parse(File.ReadAllText(Path.Combine(Folder, "golden.json")));
        foreach (JsonElement item in document.RootElement.Clone().EnumerateArray())
        {
            yield return new TestCaseData(item).SetArgDisplayNames(item.GetProperty("name").GetString()!);
        }
    }

    [TestCaseSource(nameof(Cases))]
    public void GiveWhatPythonGives(JsonElement golden)
    {
        string source = golden.TryGetProperty("family", out JsonElement family)
            ? File.ReadAllText(Path.Combine(Folder, "families", family.GetString() + ".jinja"))
            : golden.GetProperty("template").GetString()!;
        Dictionary<string, object?> variables = golden.GetProperty("variables").EnumerateObject()
            .ToDictionary(property => property.Name, property => JinjaValue.From(property.Value));
        if (golden.TryGetProperty("text", out JsonElement text))
        {
            Assert.That(JinjaTemplate.Parse(source).Render(variables, s_now), Is.EqualTo(text.GetString()));
        }
        else if (golden.TryGetProperty("raised", out JsonElement raised))
        {
            Assert.That(
                () => JinjaTemplate.Parse(source).Render(variables, s_now),
                Throws.TypeOf<TemplateRaisedException>().With.Message.EqualTo(raised.GetString()));
        }
        else
        {
            Assert.That(() => JinjaTemplate.Parse(source).Render(variables, s_now), Throws.TypeOf<JinjaException>(), golden.GetProperty("error").GetString());
        }
    }
}
