using Mustafar.Models.Evaluation;

namespace Mustafar.Examples.Llama.Commands;

/// <summary>What cache settings have in common, by which pictures colour them.</summary>
internal enum SettingFamily
{
    Pruned,
    FewBits,
    PrunedFewBits,
    Selection,
    Eviction,
    LayersDiffer,
    Simulated,
    Dense,
}

/// <summary>Tells the families of settings.</summary>
internal static class SettingFamilies
{
    /// <summary>The family of a setting: the first that it is in of simulated, evicting, with layers of their own, with channels chosen by something else
    /// than magnitude, and what it prunes and stores.</summary>
    public static SettingFamily Of(CacheSetting setting) => setting switch
    {
        { IsSimulated: true } => SettingFamily.Simulated,
        { Options: null } => SettingFamily.Dense,
        { Options.Eviction: not null } => SettingFamily.Eviction,
        { Layers: not null } => SettingFamily.LayersDiffer,
        { Options: MustafarOptions options } when Selects(options) => SettingFamily.Selection,
        { Options: { KeyBits: 16, ValueBits: 16 } } => SettingFamily.Pruned,
        { Options: { KeySparsity: 0, ValueSparsity: 0 } } => SettingFamily.FewBits,
        _ => SettingFamily.PrunedFewBits,
    };

    /// <summary>A family in words.</summary>
    public static string Describe(SettingFamily family) => family switch
    {
        SettingFamily.Pruned => "pruned, 16 bits",
        SettingFamily.FewBits => "8 or 4 bits, nothing pruned",
        SettingFamily.PrunedFewBits => "pruned, 8 or 4 bits",
        SettingFamily.Selection => "channels chosen otherwise",
        SettingFamily.Eviction => "tokens removed",
        SettingFamily.LayersDiffer => "a format for each layer",
        SettingFamily.Simulated => "other formats, simulated",
        _ => "dense",
    };

    private static bool Selects(MustafarOptions options) =>
        (options.KeySparsity > 0 && options.KeySelection != KeySelection.Magnitude) || (options.ValueSparsity > 0 && options.ValueSelection != ValueSelection.Magnitude);
}
