//! Messages at random, for the tests of their bytes.

use proptest::prelude::*;

use crate::machine::pinning::Pinned;
use crate::migration::wire::{
    Abandoned, Assessment, Closing, Message, NotRunning, Objection, Offer, PlatformBytes, Proof,
    Reason, RoundEnd, Say, Secret, SessionBytes, Transfer, VmId, Word,
};

pub(super) fn some_bytes() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..100)
}

pub(super) fn some_transfer() -> impl Strategy<Value = Transfer> {
    (any::<[u8; 16]>(), any::<u64>()).prop_map(|(vm, epoch)| Transfer { vm: VmId(vm), epoch })
}

pub(super) fn some_reason() -> impl Strategy<Value = Reason> {
    any::<String>().prop_map(|text| Reason::new(&text))
}

pub(super) fn some_platform() -> impl Strategy<Value = PlatformBytes> {
    (some_bytes(), some_bytes(), some_bytes()).prop_map(|(pdh, chain, roots)| PlatformBytes {
        pdh,
        chain,
        roots,
    })
}

pub(super) fn some_proof() -> impl Strategy<Value = Proof> {
    any::<[u8; 32]>().prop_map(Proof)
}

pub(super) fn some_say() -> impl Strategy<Value = Say> {
    prop_oneof![
        Just(Say::Prepared),
        any::<bool>().prop_map(|is_last| Say::Commit { is_last }),
        Just(Say::Running),
        prop::sample::select(NotRunning::ALL.to_vec()).prop_map(Say::NotRunning),
        some_reason().prop_map(Say::Abandon),
        Just(Say::Released),
    ]
}

pub(super) fn some_offer() -> impl Strategy<Value = Offer> {
    let abandoned =
        (any::<u64>(), some_proof()).prop_map(|(epoch, proof)| Abandoned { epoch, proof });
    let abandoned = prop::collection::vec(abandoned, 0..=16);
    (some_transfer(), any::<u64>(), 1..=128_u16, abandoned, some_bytes()).prop_map(
        |(transfer, session, connections, abandoned, machine)| Offer {
            transfer,
            session,
            connections,
            abandoned,
            machine,
        },
    )
}

pub(super) fn some_message() -> impl Strategy<Value = Message> {
    let accept = (any::<[u8; 16]>(), prop::option::of(some_platform()))
        .prop_map(|(secret, platform)| Message::Accept { secret: Secret(secret), platform });
    let objection =
        (some_reason(), some_reason()).prop_map(|(subject, reason)| Objection { subject, reason });
    let assessment = (prop::collection::vec(objection, 0..4), prop::option::of(some_platform()))
        .prop_map(|(objections, platform)| {
            Message::Assessment(Assessment { objections, platform })
        });
    let session = (any::<u32>(), some_bytes(), some_bytes())
        .prop_map(|(policy, pdh, session)| SessionBytes { policy, pdh, session });
    prop_oneof![
        some_offer().prop_map(Message::Offer),
        some_offer().prop_map(Message::Inquiry),
        assessment,
        (any::<u64>(), any::<u64>()).prop_map(|(one, other)| {
            Message::Building(Pinned { pages: one.min(other), of: one.max(other) })
        }),
        accept,
        some_reason().prop_map(|reason| Message::Refuse { reason }),
        prop::option::of(session).prop_map(|encryption| Message::Start { encryption }),
        Just(Message::Started),
        (any::<u64>(), 0..128_u16, some_proof())
            .prop_map(|(session, index, proof)| Message::Join { session, index, proof }),
        (any::<u32>(), any::<u64>(), any::<[u8; 32]>()).prop_map(|(round, frames, digest)| {
            Message::RoundEnd(RoundEnd { round, frames, digest })
        }),
        any::<u32>().prop_map(|round| Message::RoundOk { round }),
        some_closing().prop_map(Message::StatusList),
        some_closing().prop_map(Message::State),
        (some_transfer(), some_say(), some_proof())
            .prop_map(|(transfer, say, proof)| Message::Word(Word { transfer, say, proof })),
    ]
}

pub(super) fn some_closing() -> impl Strategy<Value = Closing> {
    (any::<u64>(), any::<u32>(), any::<[u8; 32]>(), some_bytes())
        .prop_map(|(session, round, digest, bytes)| Closing { session, round, digest, bytes })
}
